// Package contract_test proves that the messages of k8s.core.v1 and Kubernetes' own Go types are the same bytes. Both
// are linked into this one binary, so it proves too that their registrations don't collide.
package contract_test

import (
	"context"
	"flag"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	corepb "github.com/wasmlet/wasmlet/client/node/contract/k8s/core/v1"
	providerpb "github.com/wasmlet/wasmlet/client/node/contract/virtualkubelet/provider/v1"
)

var socket = flag.String("socket", "", "unix socket of a running provider, for TestProviderKeepsThePod")

// undeclared is a field that a later Kubernetes might add to the pod. Neither side knows it.
var undeclared = protowire.AppendString(protowire.AppendTag(nil, 1999, protowire.BytesType), "from the future")

func TestPodSurvivesTheRoundTrip(t *testing.T) {
	for name, original := range map[string]*corev1.Pod{"full": fullPod(), "empty": {}, "running": runningPod()} {
		t.Run(name, func(t *testing.T) {
			message := toMessage(t, original)
			if got := toPod(t, message); !apiequality.Semantic.DeepEqual(original, got) {
				t.Errorf("the pod came back changed:\nsent %v\ngot  %v", original, got)
			}
		})
	}
}

func TestMessageHasThePodsFields(t *testing.T) {
	message := toMessage(t, fullPod())
	container := message.GetSpec().GetContainers()[0]
	for what, equal := range map[string]bool{
		"cpu limit":            container.GetResources().GetLimits()["cpu"].GetValue() == "250m",
		"probe's port by name": container.GetReadinessProbe().GetHandler().GetHttpGet().GetPort().GetStrVal() == "http",
		"probe's port number":  container.GetLivenessProbe().GetHandler().GetTcpSocket().GetPort().GetIntVal() == 8080,
		"creation time":        message.GetMetadata().GetCreationTimestamp().GetSeconds() == created.Unix(),
		"grace period of zero": message.GetSpec().TerminationGracePeriodSeconds != nil,
		"no deadline":          message.GetSpec().ActiveDeadlineSeconds == nil,
		"supplemental groups":  len(message.GetSpec().GetSecurityContext().GetSupplementalGroups()) == 2,
	} {
		if !equal {
			t.Errorf("the message lost the %s: %v", what, message)
		}
	}
}

func TestUndeclaredFieldSurvives(t *testing.T) {
	message := withUndeclared(t, fullPod())
	bytes, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	again := &corepb.Pod{}
	if err := proto.Unmarshal(bytes, again); err != nil {
		t.Fatal(err)
	}
	if got := again.ProtoReflect().GetUnknown(); string(got) != string(undeclared) {
		t.Errorf("undeclared field came back as %q", got)
	}
	if got := toPod(t, again); !apiequality.Semantic.DeepEqual(fullPod(), got) {
		t.Errorf("the undeclared field changed the pod: %v", got)
	}
}

// TestProviderKeepsThePod needs a provider; tests/integration/test_go_client.py runs it against the real one.
func TestProviderKeepsThePod(t *testing.T) {
	if *socket == "" {
		t.Skip("no provider to talk to: -socket is not set")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	connection, err := grpc.NewClient("unix:"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	provider := providerpb.NewProviderServiceClient(connection)

	sent := fullPod()
	if _, err := provider.CreatePod(ctx, &providerpb.CreatePodRequest{Pod: withUndeclared(t, sent)}); err != nil {
		t.Fatalf("CreatePod: %v", err)
	}
	defer func() {
		if _, err := provider.DeletePod(ctx, &providerpb.DeletePodRequest{Uid: string(sent.UID)}); err != nil {
			t.Errorf("DeletePod: %v", err)
		}
	}()
	answer, err := provider.GetPod(ctx, &providerpb.GetPodRequest{Uid: string(sent.UID)})
	if err != nil {
		t.Fatalf("GetPod: %v", err)
	}
	got := toPod(t, answer.GetPod())
	got.Status = sent.Status // The provider's to write.
	if !apiequality.Semantic.DeepEqual(sent, got) {
		t.Errorf("the provider changed the pod:\nsent %v\ngot  %v", sent, got)
	}
	if unknown := answer.GetPod().ProtoReflect().GetUnknown(); string(unknown) != string(undeclared) {
		t.Errorf("the provider lost the undeclared field: %q", unknown)
	}
}

func toMessage(t *testing.T, pod *corev1.Pod) *corepb.Pod {
	t.Helper()
	bytes, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	message := &corepb.Pod{}
	if err := proto.Unmarshal(bytes, message); err != nil {
		t.Fatal(err)
	}
	return message
}

func toPod(t *testing.T, message *corepb.Pod) *corev1.Pod {
	t.Helper()
	bytes, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{}
	if err := pod.Unmarshal(bytes); err != nil {
		t.Fatal(err)
	}
	return pod
}

func withUndeclared(t *testing.T, pod *corev1.Pod) *corepb.Pod {
	t.Helper()
	message := toMessage(t, pod)
	message.ProtoReflect().SetUnknown(undeclared)
	return message
}

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func fullPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:              "round-trip",
			Namespace:         "default",
			UID:               "8d1f9a6e-5a0d-4f6e-9f43-3a1f6f0c2b11",
			CreationTimestamp: metav1.NewTime(created),
			Labels:            map[string]string{"app": "round-trip"},
			Annotations:       map[string]string{"note": "ümläut"},
			OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "42", Controller: new(true)},
			},
			ManagedFields: []metav1.ManagedFieldsEntry{{
				Manager:    "kubectl",
				Operation:  metav1.ManagedFieldsOperationApply,
				APIVersion: "v1",
				FieldsType: "FieldsV1",
				FieldsV1:   &metav1.FieldsV1{Raw: []byte(`{"f:spec":{}}`)},
			}},
		},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: new(int64(0)),
			NodeSelector:                  map[string]string{"kubernetes.io/arch": "wasm32-wasi"},
			EnableServiceLinks:            new(false),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsUser:          new(int64(1000)),
				SupplementalGroups: []int64{2000, 3000},
				Sysctls:            []corev1.Sysctl{{Name: "net.core.somaxconn", Value: "1024"}},
			},
			Overhead:    corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Mi")},
			Affinity:    affinity(),
			Tolerations: tolerations(),
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
				MaxSkew:           1,
				TopologyKey:       "kubernetes.io/hostname",
				WhenUnsatisfiable: corev1.ScheduleAnyway,
				MinDomains:        new(int32(2)),
			}},
			Volumes:    volumes(),
			Containers: []corev1.Container{container()},
		},
	}
}

func container() corev1.Container {
	return corev1.Container{
		Name:    "main",
		Image:   "example.test/guest:1",
		Command: []string{"guest"},
		Args:    []string{"--name", "$(POD_NAME)", ""},
		Ports:   []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		EnvFrom: []corev1.EnvFromSource{{
			Prefix: "CFG_",
			ConfigMapRef: &corev1.ConfigMapEnvSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "settings"},
				Optional:             new(true),
			},
		}},
		Env: []corev1.EnvVar{
			{Name: "PLAIN", Value: "value"},
			{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"},
			}},
			{Name: "CPU", ValueFrom: &corev1.EnvVarSource{
				ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu", Divisor: resource.MustParse("1m")},
			}},
			{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{
				SecretKeyRef: &corev1.SecretKeySelector{
					LocalObjectReference: corev1.LocalObjectReference{Name: "login"},
					Key:                  "password",
					Optional:             new(true),
				},
			}},
		},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("0.1")},
			Limits: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("250m"),
				corev1.ResourceMemory: resource.MustParse("64Mi"),
			},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "scratch", MountPath: "/scratch", SubPathExpr: "$(POD_NAME)"},
			{Name: "settings", MountPath: "/etc/settings", ReadOnly: true, MountPropagation: new(corev1.MountPropagationNone)},
		},
		LivenessProbe: &corev1.Probe{
			ProbeHandler:                  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
			PeriodSeconds:                 5,
			TerminationGracePeriodSeconds: new(int64(3)),
		},
		ReadinessProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path:        "/ready",
				Port:        intstr.FromString("http"),
				HTTPHeaders: []corev1.HTTPHeader{{Name: "X-Probe", Value: "1"}},
			}},
		},
		StartupProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9090, Service: new("")}},
		},
		Lifecycle: &corev1.Lifecycle{
			PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}},
		},
		SecurityContext: &corev1.SecurityContext{
			ReadOnlyRootFilesystem: new(true),
			Capabilities:           &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		TTY:   true,
		Stdin: true,
	}
}

func volumes() []corev1.Volume {
	return []corev1.Volume{
		{Name: "scratch", VolumeSource: corev1.VolumeSource{
			EmptyDir: &corev1.EmptyDirVolumeSource{
				Medium:    corev1.StorageMediumMemory,
				SizeLimit: new(resource.MustParse("1Gi")),
			},
		}},
		{Name: "settings", VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "settings"},
				Items:                []corev1.KeyToPath{{Key: "a", Path: "dir/a", Mode: new(int32(0o400))}},
				DefaultMode:          new(int32(0o644)),
				Optional:             new(true),
			},
		}},
		{Name: "all", VolumeSource: corev1.VolumeSource{
			Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
					ExpirationSeconds: new(int64(3607)),
					Path:              "token",
				}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
					Path:     "labels",
					FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels"},
				}}}},
			}},
		}},
		{Name: "disk", VolumeSource: corev1.VolumeSource{
			Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
				Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					StorageClassName: new(""),
					Resources: corev1.VolumeResourceRequirements{
						Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")},
					},
				},
			}},
		}},
	}
}

func affinity() *corev1.Affinity {
	workers := &metav1.LabelSelector{
		MatchLabels:      map[string]string{"role": "worker"},
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "old", Operator: metav1.LabelSelectorOpDoesNotExist}},
	}
	return &corev1.Affinity{
		NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"a", "b"}},
				}}},
			},
		},
		PodAntiAffinity: &corev1.PodAntiAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
				Weight: 7,
				PodAffinityTerm: corev1.PodAffinityTerm{
					LabelSelector:     workers,
					NamespaceSelector: &metav1.LabelSelector{},
					TopologyKey:       "kubernetes.io/hostname",
				},
			}},
		},
	}
}

func tolerations() []corev1.Toleration {
	return []corev1.Toleration{
		{Key: "kubernetes.io/arch", Operator: corev1.TolerationOpEqual, Value: "wasm32-wasi"},
		{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64(0))},
	}
}

// runningPod has a status with each state that a container can be in.
func runningPod() *corev1.Pod {
	ended := corev1.ContainerStateTerminated{
		ExitCode:    134,
		Reason:      "Error",
		StartedAt:   metav1.NewTime(created),
		FinishedAt:  metav1.NewTime(created.Add(time.Second)),
		ContainerID: "wasmlet://1",
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:                       "running",
			DeletionTimestamp:          new(metav1.NewTime(created)),
			DeletionGracePeriodSeconds: new(int64(30)),
		},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			HostIP:     "192.0.2.1",
			HostIPs:    []corev1.HostIP{{IP: "192.0.2.1"}},
			PodIP:      "192.0.2.2",
			PodIPs:     []corev1.PodIP{{IP: "192.0.2.2"}, {IP: "2001:db8::2"}},
			StartTime:  new(metav1.NewTime(created)),
			QOSClass:   corev1.PodQOSBurstable,
			ContainerStatuses: []corev1.ContainerStatus{
				{
					Name:                 "waiting",
					State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
					LastTerminationState: corev1.ContainerState{Terminated: &ended},
					RestartCount:         3,
				},
				{
					Name:    "running",
					State:   corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(created)}},
					Ready:   true,
					Started: new(true),
					ImageID: "sha256:0",
					User: &corev1.ContainerUser{
						Linux: &corev1.LinuxContainerUser{UID: 1, GID: 2, SupplementalGroups: []int64{3}},
					},
				},
				{Name: "done", State: corev1.ContainerState{Terminated: &ended}},
			},
		},
	}
}
