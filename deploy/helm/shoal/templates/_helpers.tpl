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

{{- define "shoal.caSecret" -}}
{{ .Values.tls.caSecret | default (printf "%s-ca" (include "shoal.fullname" .)) }}
{{- end }}

{{- define "shoal.issuer" -}}
{{- with .Values.tls.issuerRef }}{{ .name }}{{ else }}{{ include "shoal.fullname" $ }}-ca{{ end }}
{{- end }}

{{- define "shoal.tlsArgs" -}}
{{- if ne .Values.tls.mode "none" }}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
- --tls-ca=/tls/ca.crt
{{- end }}
{{- end }}

{{/* The container that issues a pod's certificate; names are YAML. */}}
{{- define "shoal.certificate" -}}
- name: certificate
  image: {{ include "shoal.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - certificate
    - --ca-cert=/ca/ca.crt
    - --ca-key=/ca/ca.key
    - --dir=/tls
    - --valid=87600h
    {{- .names | nindent 4 }}
  env:
    - name: NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    - name: POD_IP
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    {{- include "shoal.confined" .root | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    - {name: ca, mountPath: /ca, readOnly: true}
    - {name: tls, mountPath: /tls}
{{- end }}
