package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSpec is what a test uses of a pod's spec.
type PodSpec struct {
	HostNetwork     bool            `json:"hostNetwork"`
	InitContainers  []ContainerSpec `json:"initContainers"`
	Containers      []ContainerSpec `json:"containers"`
	SecurityContext struct {
		RunAsUser, RunAsGroup, FSGroup *int64
	} `json:"securityContext"`
	Volumes []struct {
		Name     string `json:"name"`
		HostPath *struct {
			Path, Type string
		} `json:"hostPath"`
		EmptyDir *struct{} `json:"emptyDir"`
		Secret   *struct {
			SecretName string `json:"secretName"`
		} `json:"secret"`
		Projected *struct {
			Sources []struct {
				ServiceAccountToken *struct{ Path, Audience string } `json:"serviceAccountToken"`
				ConfigMap           *struct {
					Name  string
					Items []struct{ Key, Path string }
				} `json:"configMap"`
			}
		} `json:"projected"`
	} `json:"volumes"`
}

// ContainerSpec is what a test uses of a container's.
type ContainerSpec struct {
	Name  string   `json:"name"`
	Image string   `json:"image"`
	Args  []string `json:"args"`
	Env   []struct {
		Name, Value string
		ValueFrom   *struct {
			FieldRef *struct {
				FieldPath string `json:"fieldPath"`
			} `json:"fieldRef"`
		} `json:"valueFrom"`
	} `json:"env"`
	SecurityContext struct {
		ReadOnlyRootFilesystem bool `json:"readOnlyRootFilesystem"`
		Capabilities           struct{ Drop []string }
	} `json:"securityContext"`
	VolumeMounts []struct {
		Name, MountPath string
		ReadOnly        bool `json:"readOnly"`
	} `json:"volumeMounts"`
}

// Cluster is what a kubelet has of its cluster.
type Cluster struct {
	// Secrets and ConfigMaps are contents by name and key.
	Secrets, ConfigMaps map[string]map[string]string
	// Tokens are those of the pod's service account, by audience.
	Tokens map[string]string
	// Fields are what the downward API says.
	Fields map[string]string
	// Env is what every container is told of the cluster, KEY=VALUE.
	Env []string
}

// Pod is a pod that runs.
type Pod struct {
	c          *Containerd
	sandbox    string
	config     *cri.PodSandboxConfig
	containers map[string]string // IDs by name
}

// RunPod does for a pod what the kubelet does, on the node's network: volumes,
// init containers to their end, then the containers. Host paths are below the
// node's directory.
func (c *Containerd) RunPod(t testing.TB, name string, spec PodSpec, cluster Cluster) *Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	node := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	p := &Pod{c: c, containers: map[string]string{}, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "shoal", Uid: name},
		LogDirectory: c.node.Path("pods", name),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: node, Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}}
	if err := os.MkdirAll(p.config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	sandbox, err := c.pods.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatalf("pod %s: %v", name, err)
	}
	p.sandbox = sandbox.PodSandboxId
	t.Cleanup(func() { p.remove(t) })
	volumes := p.volumes(t, spec, cluster)
	for _, one := range spec.InitContainers {
		p.start(t, ctx, spec, one, volumes, cluster)
		if code := p.Wait(t, one.Name); code != 0 {
			t.Fatalf("pod %s: init container %s ended with %d:\n%s", name, one.Name, code, p.Log(one.Name))
		}
	}
	for _, one := range spec.Containers {
		p.start(t, ctx, spec, one, volumes, cluster)
	}
	return p
}

// volumes makes the pod's volumes and returns their paths.
func (p *Pod) volumes(t testing.TB, spec PodSpec, cluster Cluster) map[string]string {
	t.Helper()
	paths := map[string]string{}
	for _, v := range spec.Volumes {
		path := p.c.node.Path("volumes", p.config.Metadata.Name, v.Name)
		if v.HostPath != nil {
			path = p.c.node.Path("host", v.HostPath.Path)
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if v.EmptyDir != nil {
			// As the kubelet: anybody may write, for the pod's user must.
			if err := os.Chmod(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		files := map[string]string{}
		if v.Secret != nil {
			files = cluster.Secrets[v.Secret.SecretName]
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if token := s.ServiceAccountToken; token != nil {
					files[token.Path] = cluster.Tokens[token.Audience]
				}
				if s.ConfigMap != nil {
					for _, item := range s.ConfigMap.Items {
						files[item.Path] = cluster.ConfigMaps[s.ConfigMap.Name][item.Key]
					}
				}
			}
		}
		for name, content := range files {
			file := filepath.Join(path, name)
			if err := os.WriteFile(file, []byte(content), 0o440); err != nil {
				t.Fatal(err)
			}
			if group := spec.SecurityContext.FSGroup; group != nil {
				if err := os.Chown(file, 0, int(*group)); err != nil {
					t.Fatal(err)
				}
			}
		}
		paths[v.Name] = path
	}
	return paths
}

func (p *Pod) start(t testing.TB, ctx context.Context, spec PodSpec, one ContainerSpec, volumes map[string]string, cluster Cluster) {
	t.Helper()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: one.Name},
		Image:    &cri.ImageSpec{Image: one.Image},
		LogPath:  one.Name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			Capabilities:     &cri.Capability{DropCapabilities: one.SecurityContext.Capabilities.Drop},
			NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
			ReadonlyRootfs:   one.SecurityContext.ReadOnlyRootFilesystem,
			RunAsUser:        &cri.Int64Value{Value: *spec.SecurityContext.RunAsUser},
			RunAsGroup:       &cri.Int64Value{Value: *spec.SecurityContext.RunAsGroup},
			NoNewPrivs:       true,
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	if group := spec.SecurityContext.FSGroup; group != nil {
		config.Linux.SecurityContext.SupplementalGroups = []int64{*group}
	}
	var expand []string
	for _, e := range cluster.Env {
		key, value, _ := strings.Cut(e, "=")
		config.Envs = append(config.Envs, &cri.KeyValue{Key: key, Value: []byte(value)})
	}
	for _, e := range one.Env {
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			e.Value = cluster.Fields[e.ValueFrom.FieldRef.FieldPath]
		}
		config.Envs = append(config.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(e.Value)})
		expand = append(expand, "$("+e.Name+")", e.Value)
	}
	for _, arg := range one.Args {
		config.Args = append(config.Args, strings.NewReplacer(expand...).Replace(arg))
	}
	for _, m := range one.VolumeMounts {
		config.Mounts = append(config.Mounts, &cri.Mount{ContainerPath: m.MountPath, HostPath: volumes[m.Name], Readonly: m.ReadOnly})
	}
	made, err := p.c.pods.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.sandbox, Config: config, SandboxConfig: p.config})
	if err == nil {
		p.containers[one.Name] = made.ContainerId
		_, err = p.c.pods.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	}
	if err != nil {
		t.Fatalf("container %s: %v", one.Name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s/%s:\n%s", p.config.Metadata.Name, one.Name, p.Log(one.Name))
		}
	})
}

// Pid is the process of a container.
func (p *Pod) Pid(t testing.TB, name string) string {
	t.Helper()
	out, err := p.c.Ctr(CRINamespace, "tasks", "ls")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == p.containers[name] {
			return f[1]
		}
	}
	t.Fatalf("container %s does not run:\n%s", name, p.Log(name))
	return ""
}

// Wait waits until a container has ended, and returns its exit code.
func (p *Pod) Wait(t testing.TB, name string) (code int32) {
	t.Helper()
	Eventually(t, "container "+name+" ends", time.Minute, func() error {
		s, err := p.c.pods.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: p.containers[name]})
		if err != nil {
			return err
		}
		if s.Status.State != cri.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %s", s.Status.State)
		}
		code = s.Status.ExitCode
		return nil
	})
	return code
}

// Stop ends a container as the kubelet does, and returns its exit code.
func (p *Pod) Stop(t testing.TB, name string) int32 {
	t.Helper()
	if _, err := p.c.pods.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: p.containers[name], Timeout: 35}); err != nil {
		t.Fatal(err)
	}
	return p.Wait(t, name)
}

// Log is what a container has written.
func (p *Pod) Log(name string) string {
	b, err := os.ReadFile(filepath.Join(p.config.LogDirectory, name+".log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-logTail):])
}

func (p *Pod) remove(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	if _, err := p.c.pods.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Errorf("stopping pod %s: %v", p.config.Metadata.Name, err)
	}
	if _, err := p.c.pods.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Errorf("removing pod %s: %v", p.config.Metadata.Name, err)
	}
}
