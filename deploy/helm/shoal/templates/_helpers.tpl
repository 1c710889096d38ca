{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{/* Labels that never change: selectors are made of them. */}}
{{- define "shoal.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "shoal.labels" -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "shoal.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default (printf "v%s" $.Chart.AppVersion) }}{{ end }}
{{- end }}
{{- end }}

{{- define "shoal.schedulerHost" -}}
{{ include "shoal.fullname" . }}-scheduler.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- define "shoal.exposed" -}}
{{- if or .Values.metrics.expose .Values.metrics.podMonitor.enabled }}yes{{ end }}
{{- end }}

{{/* The node's address in HOST:PORT. */}}
{{- define "shoal.nodeHost" -}}
{{- if .Values.ipv6 }}[$(HOST_IP)]{{ else }}$(HOST_IP){{ end }}
{{- end }}

{{- define "shoal.adminHost" -}}
{{- if include "shoal.exposed" . }}{{ include "shoal.nodeHost" . }}{{ else }}127.0.0.1{{ end }}
{{- end }}

{{/* Nine tenths of a memory limit, in bytes: what Go may use before it works
harder to free some. */}}
{{- define "shoal.gomemlimit" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $q := toString . }}
{{- if not (regexMatch "^[0-9]+(\\.[0-9]+)?([kMGT]|[KMGT]i)?$" $q) }}
{{- fail (printf "memory limit %q: want a number with unit, such as 512Mi or 1Gi" $q) }}
{{- end }}
{{- $n := regexFind "^[0-9.]+" $q | float64 }}
{{- mulf $n (get $units (regexFind "[a-zA-Z]+$" $q)) 0.9 | floor | int64 }}
{{- end }}

{{- define "shoal.goEnv" -}}
{{- $limits := .limits | default dict }}
{{- if $limits.memory }}
- name: GOMEMLIMIT
  value: {{ include "shoal.gomemlimit" $limits.memory | quote }}
{{- end }}
{{- if $limits.cpu }}
- name: GOMAXPROCS
  valueFrom: {resourceFieldRef: {resource: limits.cpu}}
{{- end }}
{{- end }}

{{/* What no container of the chart may do. */}}
{{- define "shoal.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Whether this release runs schedulers, and whether there are any at all. A node
without any is on its own: it listens for nobody and proves nothing. */}}
{{- define "shoal.schedulers" -}}
{{- if and .Values.scheduler.enabled (not .Values.scheduler.external) }}yes{{ end }}
{{- end }}

{{- define "shoal.swarm" -}}
{{- if or .Values.scheduler.enabled .Values.scheduler.external }}yes{{ end }}
{{- end }}

{{- define "shoal.tlsMode" -}}
{{- if include "shoal.swarm" . }}{{ .Values.tls.mode }}{{ else }}none{{ end }}
{{- end }}

{{/* Only schedulers mount this Secret: it has the key of the CA. */}}
{{- define "shoal.caSecret" -}}
{{ .Values.tls.caSecret | default (printf "%s-ca" (include "shoal.fullname" .)) }}
{{- end }}

{{/* What daemons know the CA by. It is no part of the Secret: whoever is root on a
node can read all of a Secret that a pod of the node names. */}}
{{- define "shoal.caConfigMap" -}}
{{- if .Values.tls.caConfigMap }}{{ .Values.tls.caConfigMap }}
{{- else if include "shoal.schedulers" . }}{{ include "shoal.caSecret" . }}
{{- else }}{{ fail "tls.mode generated with scheduler.external needs tls.caConfigMap: a ConfigMap with the ca.crt of those schedulers" }}
{{- end }}
{{- end }}

{{- define "shoal.issuerURL" -}}
{{- if .Values.tls.issuerURL }}{{ .Values.tls.issuerURL }}
{{- else if include "shoal.schedulers" . }}https://{{ include "shoal.schedulerHost" . }}:{{ .Values.scheduler.issuerPort }}
{{- else }}{{ fail "tls.mode generated with scheduler.external needs tls.issuerURL, where those schedulers issue certificates, such as https://shoal-scheduler.shoal.svc.cluster.local:4405" }}
{{- end }}
{{- end }}

{{- define "shoal.issuer" -}}
{{- with .Values.tls.issuerRef }}{{ .name }}{{ else }}{{ include "shoal.fullname" $ }}-ca{{ end }}
{{- end }}

{{/* Flags for certificates that are files. */}}
{{- define "shoal.tlsArgs" -}}
{{- if has (include "shoal.tlsMode" .) (list "certManager" "existing") }}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
- --tls-ca=/tls/ca.crt
{{- end }}
{{- end }}
