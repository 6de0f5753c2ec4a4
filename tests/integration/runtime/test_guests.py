"""What a guest meets and how its end is told, with real programs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from integration.runtime.harness import Node, Program
from wasmlet.runtime.spec import ExitCause, Preopen, SpawnError

Wat = Callable[[str], Program]


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 128, 255])
async def test_exit_codes_are_exact(node: Node, c: Program, code: int) -> None:
    ended = await node.run(node.spec(c, "exit", str(code)))
    assert (ended.code, ended.cause, ended.message) == (code, ExitCause.EXITED, "")


async def test_go_ends_with_its_code(node: Node, go: Program) -> None:
    ended = await node.run(node.spec(go, "exit", "200"))
    assert (ended.code, ended.cause) == (200, ExitCause.EXITED)


async def test_an_exit_has_its_times(node: Node, c: Program) -> None:
    before = datetime.now(UTC)
    started = await node.start(node.spec(c, "exit", "0"))
    ended = await node.exit()
    assert ended.started_at == started.started_at
    assert before - timedelta(milliseconds=1) <= ended.started_at <= ended.finished_at <= datetime.now(UTC)


async def test_a_trap_is_134_with_its_text_and_backtrace(node: Node, c: Program) -> None:
    ended = await node.run(node.spec(c, "trap"))
    assert (ended.code, ended.cause) == (134, ExitCause.TRAPPED)
    assert "wasm trap: wasm `unreachable` instruction executed" in ended.message
    assert "wasm backtrace" in ended.message
    assert "stderr F Error: error while executing at wasm backtrace:" in node.lines()


async def test_a_trap_of_the_start_function_is_one_of_the_program(node: Node, wat: Wat) -> None:
    program = wat('(module (func $f unreachable) (start $f) (memory (export "memory") 1) (func (export "_start")))')
    ended = await node.run(node.spec(program))
    assert (ended.code, ended.cause) == (134, ExitCause.TRAPPED)
    assert "unreachable" in ended.message


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143)])
async def test_a_signal_is_128_and_its_number(node: Node, c: Program, number: int, code: int) -> None:
    await node.start(node.spec(c, "sleep"))
    await node.ready()
    await node.spawner.kill("one", number)
    ended = await node.exit()
    assert (ended.code, ended.cause) == (code, ExitCause.SIGNALLED)


async def test_killing_what_is_gone_is_no_error(node: Node, c: Program) -> None:
    await node.run(node.spec(c, "exit", "0"))
    await node.spawner.kill("one", signal.SIGKILL)
    await node.spawner.kill("never-was", signal.SIGKILL)


async def test_the_same_id_is_started_once(node: Node, c: Program) -> None:
    first = await node.start(node.spec(c, "sleep"))
    assert await node.start(node.spec(c, "sleep")) == first
    await node.spawner.kill("one", signal.SIGKILL)
    await node.exit()
    assert (await node.start(node.spec(c, "sleep"))).started_at == first.started_at
    assert [process.exit for process in await node.spawner.list()] == [node.exits["one"]]


async def test_arguments_and_environment_arrive_as_written(node: Node, c: Program) -> None:
    arguments = ("", "two words", "ünï ☃ 🎈", "$(NO) \\ \"'", "tab\there")
    env = (("A", "1"), ("EMPTY", ""), ("ünï", "☃=🎈"), ("B", " x "))
    ended = await node.run(node.spec(c, "arguments", *arguments, env=env))
    assert ended.code == 0
    assert node.output() == ["guest", "arguments", *arguments, *(f"{name}={value}" for name, value in env)]


async def test_an_environment_of_two_megabytes(node: Node, c: Program) -> None:
    env = tuple((f"V{number}", "x" * 100_000) for number in range(20))
    ended = await node.run(node.spec(c, "arguments", env=env))
    assert ended.code == 0
    assert len(node.raw_log()) > 2_000_000


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        (("a\0b",), (), "argument 1 contains a zero byte"),
        (("\ud800",), (), "argument 1 is not valid UTF-8"),
        ((), (("A", "x\0"),), "variable 'A' contains a zero byte"),
    ],
)
async def test_what_no_program_can_get_is_refused(
    node: Node, c: Program, argv: tuple[str, ...], env: tuple[tuple[str, str], ...], message: str
) -> None:
    with pytest.raises(SpawnError, match=message):
        await node.start(node.spec(c, *argv, env=env))


async def test_an_id_that_is_no_file_name_is_refused(node: Node, c: Program) -> None:
    with pytest.raises(SpawnError, match=r"the ID '\.\./x' is not made of letters"):
        await node.start(node.spec(c, id_="../x"))


async def test_input_is_empty_or_held_open(node: Node, c: Program) -> None:
    await node.run(node.spec(c, "stdin"))
    assert node.output() == ["ready", "read 0"]
    await node.start(node.spec(c, "stdin", id_="two", stdin=True))
    await node.ready("two")
    assert node.output("two") == ["ready"]
    await node.spawner.kill("two", signal.SIGKILL)
    assert (await node.exit("two")).code == 137


class TestDirectories:
    async def test_the_longest_name_wins(self, node: Node, c: Program, tmp_path: Path) -> None:
        (tmp_path / "volume").mkdir()
        (tmp_path / "volume" / "file").write_text("the volume's")
        (node.root / "data" / "deep").mkdir(parents=True)
        (node.root / "data" / "deep" / "file").write_text("hidden")
        (node.root / "data" / "other").write_text("the root's")
        preopens = (Preopen(host=node.root, guest="/"), Preopen(host=tmp_path / "volume", guest="/data/deep"))
        await node.run(node.spec(c, "cat", "/data/deep/file", id_="volume", preopens=preopens))
        await node.run(node.spec(c, "cat", "/data/other", id_="root", preopens=preopens))
        assert node.output("volume") == ["the volume's"]
        assert node.output("root") == ["the root's"]

    @pytest.mark.parametrize(
        "command",
        [("write", "/ro/file", "x"), ("write", "/ro/new", "x"), ("unlink", "/ro/file"), ("mkdir", "/ro/directory")],
    )
    async def test_read_only_holds(self, node: Node, c: Program, tmp_path: Path, command: tuple[str, ...]) -> None:
        (tmp_path / "ro").mkdir()
        (tmp_path / "ro" / "file").write_text("kept")
        preopens = (Preopen(host=node.root, guest="/"), Preopen(host=tmp_path / "ro", guest="/ro", read_only=True))
        ended = await node.run(node.spec(c, *command, preopens=preopens))
        assert ended.code == 1
        assert [path.name for path in (tmp_path / "ro").iterdir()] == ["file"]
        assert (tmp_path / "ro" / "file").read_text() == "kept"
        ended = await node.run(node.spec(c, "cat", "/ro/file", id_="reader", preopens=preopens))
        assert node.output("reader") == ["kept"]

    async def test_a_guest_cannot_leave_its_root(self, node: Node, c: Program, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (node.root / "link").symlink_to(tmp_path / "secret")
        for number, path in enumerate(("/../../secret", "/link", "link")):
            ended = await node.run(node.spec(c, "cat", path, id_=f"n{number}"))
            assert ended.code == 1
            assert "secret" not in node.output(f"n{number}")

    @pytest.mark.parametrize("language", ["c", "go"])
    async def test_relative_paths_start_at_the_working_directory(
        self, node: Node, language: str, request: pytest.FixtureRequest
    ) -> None:
        program: Program = request.getfixturevalue(language)
        (node.root / "app" / "sub").mkdir(parents=True)
        (node.root / "etc").mkdir()
        (node.root / "app" / "file").write_text("the app's")
        (node.root / "app" / "sub" / "file").write_text("the sub's")
        (node.root / "etc" / "hosts").write_text("the hosts")
        for number, (path, content) in enumerate(
            [
                ("file", "the app's"),
                ("./file", "the app's"),
                ("sub/file", "the sub's"),
                ("/app/file", "the app's"),
                ("/etc/hosts", "the hosts"),
            ]
        ):
            ended = await node.run(node.spec(program, "cat", path, id_=f"n{number}", working_dir="/app"))
            assert (ended.code, node.output(f"n{number}")) == (0, [content]), path

    async def test_go_knows_its_working_directory(self, node: Node, go: Program) -> None:
        (node.root / "app").mkdir()
        await node.run(node.spec(go, "pwd", working_dir="/app"))
        assert node.output() == ["/app <nil>"]

    async def test_a_working_directory_in_a_read_only_volume(self, node: Node, c: Program, tmp_path: Path) -> None:
        (tmp_path / "ro" / "work").mkdir(parents=True)
        (tmp_path / "ro" / "work" / "file").write_text("kept")
        preopens = (Preopen(host=node.root, guest="/"), Preopen(host=tmp_path / "ro", guest="/v", read_only=True))
        await node.run(node.spec(c, "cat", "file", id_="reads", preopens=preopens, working_dir="/v/work"))
        assert node.output("reads") == ["kept"]
        spec = node.spec(c, "write", "file", "lost", id_="writes", preopens=preopens, working_dir="/v/work")
        assert (await node.run(spec)).code == 1
        assert (tmp_path / "ro" / "work" / "file").read_text() == "kept"

    async def test_a_working_directory_is_no_way_out(self, node: Node, c: Program, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "file").write_text("secret")
        (node.root / "way").symlink_to(tmp_path / "outside")
        (node.root / "up").symlink_to("../../outside")
        for name in ("way", "up"):
            ended = await node.run(node.spec(c, "cat", "file", id_=name, working_dir=f"/{name}"))
            assert ended.cause is ExitCause.START_FAILED
            assert ended.message == f"cannot open the working directory /{name}: No such file or directory"


class TestFailedStarts:
    async def test_the_start_is_answered_before_its_end_is_told(self, node: Node, wat: Wat) -> None:
        started = await node.start(node.spec(wat("(module)")))
        assert (started.pid, node.exits) == (0, {})
        assert (await node.exit()).started_at == started.started_at

    async def test_no_start_function(self, node: Node, wat: Wat) -> None:
        ended = await node.run(node.spec(wat('(module (memory (export "memory") 1) (func (export "go")))')))
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert ended.message == 'the module exports no function "_start": it is a library, not a program'

    async def test_every_unknown_import_is_named(self, node: Node, wat: Wat) -> None:
        ended = await node.run(
            node.spec(
                wat(
                    '(module (import "env" "first" (func)) (import "wasi_snapshot_preview1" "fd_close"'
                    ' (func (param i32) (result i32))) (import "host" "second" (func)) (func (export "_start")))'
                )
            )
        )
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert ended.message == 'the module needs 2 unknown imports: "env" "first", "host" "second"'

    async def test_an_import_of_another_type(self, node: Node, wat: Wat) -> None:
        program = wat('(module (import "wasi_snapshot_preview1" "fd_close" (func)) (func (export "_start")))')
        ended = await node.run(node.spec(program))
        assert ended.cause is ExitCause.START_FAILED
        assert "incompatible import type for `wasi_snapshot_preview1::fd_close`" in ended.message

    async def test_a_start_function_with_parameters(self, node: Node, wat: Wat) -> None:
        ended = await node.run(node.spec(wat('(module (func (export "_start") (param i32)))')))
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert "takes or returns values" in ended.message

    async def test_a_missing_directory(self, node: Node, c: Program, tmp_path: Path) -> None:
        ended = await node.run(node.spec(c, preopens=(Preopen(host=tmp_path / "gone", guest="/"),)))
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert ended.message == f"cannot open the directory for /: {tmp_path}/gone: No such file or directory"

    async def test_a_missing_artifact(self, node: Node, c: Program, tmp_path: Path) -> None:
        ended = await node.run(node.spec(Program(tmp_path / "gone", c.kind)))
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert "No such file" in ended.message

    async def test_a_memory_larger_than_any(self, node: Node, wat: Wat) -> None:
        program = wat('(module (memory (export "memory") i64 0x200000000000) (func (export "_start")))')
        ended = await node.run(node.spec(program))
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert "memory" in ended.message

    async def test_a_component_that_is_no_command(self, node: Node, wat: Wat) -> None:
        ended = await node.run(node.spec(wat("(component)")))
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert "wasi:cli/run" in ended.message

    async def test_a_component_with_an_unknown_import(self, node: Node, wat: Wat) -> None:
        text = COMMAND.format(
            imports='(import "acme:clock/hours@1.0.0" (instance (export "f" (func))))', body="i32.const 0"
        )
        ended = await node.run(node.spec(wat(text)))
        assert (ended.code, ended.cause) == (128, ExitCause.START_FAILED)
        assert "acme:clock/hours@1.0.0" in ended.message


COMMAND = """
(component {imports}
  (core module $m (func (export "run") (result i32) {body}))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.3" (instance $command)))
"""

EXIT = """
(component
  (import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))
  (core func $exit (canon lower (func $exit "exit")))
  (core instance $wasi (export "exit" (func $exit)))
  (core module $m
    (import "wasi" "exit" (func $exit (param i32)))
    (func (export "run") (result i32) i32.const {status} call $exit unreachable))
  (core instance $i (instantiate $m (with "wasi" (instance $wasi))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
"""


class TestComponents:
    async def test_its_output_is_logged(self, node: Node, wat: Wat) -> None:
        text = Path(__file__).parent.joinpath("guests", "print.wat").read_text()
        assert (await node.run(node.spec(wat(text)))).code == 0
        assert node.lines() == ["stdout F from a component"]

    @pytest.mark.parametrize(("result", "code"), [(0, 0), (1, 1)])
    async def test_its_result_is_its_code(self, node: Node, wat: Wat, result: int, code: int) -> None:
        ended = await node.run(node.spec(wat(COMMAND.format(imports="", body=f"i32.const {result}"))))
        assert (ended.code, ended.cause, ended.message) == (code, ExitCause.EXITED, "")

    @pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 1)])
    async def test_its_exit_is_its_code(self, node: Node, wat: Wat, status: int, code: int) -> None:
        ended = await node.run(node.spec(wat(EXIT.format(status=status))))
        assert (ended.code, ended.cause, ended.message) == (code, ExitCause.EXITED, "")

    async def test_its_trap_is_134(self, node: Node, wat: Wat) -> None:
        ended = await node.run(node.spec(wat(COMMAND.format(imports="", body="unreachable"))))
        assert (ended.code, ended.cause) == (134, ExitCause.TRAPPED)
        assert "unreachable" in ended.message
