package deploy

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// checkObject looks at what must hold whatever the values are.
func checkObject(t *testing.T, object runtime.Object) {
	t.Helper()
	switch o := object.(type) {
	case *core.ServiceAccount:
		if o.AutomountServiceAccountToken == nil || *o.AutomountServiceAccountToken {
			t.Error("the service account's token is mounted")
		}
	case *core.Service:
		if o.Spec.ClusterIP != core.ClusterIPNone {
			t.Error("daemons would take several schedulers for one")
		}
	case *apps.DaemonSet:
		if r := o.Spec.UpdateStrategy.RollingUpdate; r == nil || r.MaxSurge.IntValue() != 0 || r.MaxUnavailable == nil {
			t.Error("two daemons would run on one node during an upgrade")
		}
		checkSelects(t, "the DaemonSet", o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
		checkPod(t, &o.Spec.Template.Spec)
		checkDaemon(t, &o.Spec.Template.Spec)
		if o.Spec.Template.Spec.ServiceAccountName != o.Name {
			t.Errorf("the daemons' service account is %s", o.Spec.Template.Spec.ServiceAccountName)
		}
	case *rbac.ClusterRole:
		if !reflect.DeepEqual(o.Rules, []rbac.PolicyRule{{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}}}) {
			t.Errorf("rights: %+v", o.Rules)
		}
	case *rbac.ClusterRoleBinding:
		if len(o.Subjects) != 1 || o.Subjects[0].Kind != "ServiceAccount" || !strings.HasSuffix(o.Subjects[0].Name, "-scheduler") || o.Subjects[0].Namespace != "shoal" {
			t.Errorf("rights are for %+v", o.Subjects)
		}
	case *apps.Deployment:
		if o.Spec.Template.Spec.ServiceAccountName != o.Name {
			t.Errorf("the schedulers' service account is %s", o.Spec.Template.Spec.ServiceAccountName)
		}
		checkSelects(t, "the Deployment", o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
		checkPod(t, &o.Spec.Template.Spec)
		if o.Spec.Template.Spec.HostNetwork || !*o.Spec.Template.Spec.SecurityContext.RunAsNonRoot {
			t.Error("the scheduler needs neither the node's network nor root")
		}
	}
}

func checkSelects(t *testing.T, what string, selector, labels map[string]string) {
	t.Helper()
	for k, v := range selector {
		if labels[k] != v {
			t.Errorf("%s does not select its own pods: %s", what, k)
		}
	}
}

// checkPod holds a pod to the least that it needs.
func checkPod(t *testing.T, pod *core.PodSpec) {
	t.Helper()
	if pod.HostPID || pod.HostIPC {
		t.Error("a pod shares the node's processes or IPC")
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("a pod may ask the API")
	}
	if pod.SecurityContext.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
		t.Error("no seccomp profile")
	}
	if pod.PriorityClassName == "" {
		t.Error("no priority")
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		if volumes[v.Name] {
			t.Errorf("two volumes are called %s", v.Name)
		}
		volumes[v.Name] = true
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		s := c.SecurityContext
		if s == nil || s.Privileged != nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
			s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
			len(s.Capabilities.Add) > 0 || !slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) {
			t.Errorf("container %s may do more than it needs: %+v", c.Name, s)
		}
		if c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("container %s has no memory request or limit", c.Name)
		}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("container %s mounts %s, which is no volume", c.Name, m.Name)
			}
		}
		for _, arg := range c.Args {
			for rest := arg; ; {
				_, after, found := strings.Cut(rest, "$(")
				if !found {
					break
				}
				name, after, _ := strings.Cut(after, ")")
				if !slices.ContainsFunc(c.Env, func(e core.EnvVar) bool { return e.Name == name }) {
					t.Errorf("container %s: %s names a variable that it does not have", c.Name, arg)
				}
				rest = after
			}
		}
	}
}

func checkDaemon(t *testing.T, pod *core.PodSpec) {
	t.Helper()
	if !pod.HostNetwork || pod.DNSPolicy != core.DNSClusterFirstWithHostNet {
		t.Error("the runtime finds the mirror on the node's loopback, and the daemon the schedulers by the cluster's DNS")
	}
	d := pod.Containers[0]
	if !slices.ContainsFunc(d.Args, func(arg string) bool { return strings.HasPrefix(arg, "--listen=127.0.0.1:") }) {
		t.Error("the mirror listens for others than the node")
	}
	if d.LivenessProbe.HTTPGet.Path != "/healthz" || d.ReadinessProbe.HTTPGet.Path != "/readyz" || d.StartupProbe == nil {
		t.Error("probes")
	}
	limit := false
	for _, e := range d.Env {
		limit = limit || e.Name == "GOMEMLIMIT"
	}
	if !limit {
		t.Error("Go does not know its memory limit")
	}
	for _, v := range pod.Volumes {
		if v.Name == "cache" && v.HostPath == nil {
			t.Error("the cache goes with the pod")
		}
	}
	// Who can write containerd's own configuration is root on the node.
	for _, c := range pod.Containers[1:] {
		for _, m := range c.VolumeMounts {
			if strings.HasPrefix(m.Name, "config-") && !m.ReadOnly {
				t.Errorf("container %s may write %s", c.Name, m.MountPath)
			}
		}
	}
	// Who may write the runtime's configuration has nothing to do with the network.
	for _, m := range d.VolumeMounts {
		if strings.HasPrefix(m.MountPath, "/host") {
			t.Error("the daemon may write the runtime's configuration")
		}
	}
}
