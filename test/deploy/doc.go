// Package deploy checks what deploy/ gives to operators: the Helm chart, the
// plain manifests made of it, the units of systemd, the package.
package deploy
