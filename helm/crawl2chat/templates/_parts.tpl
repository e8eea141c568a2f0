{{- define "crawl2chat.selector" -}}
app.kubernetes.io/name: crawl2chat
app.kubernetes.io/instance: {{ .top.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "crawl2chat.labels" -}}
{{ include "crawl2chat.selector" . }}
app.kubernetes.io/version: {{ include "crawl2chat.tag" .top | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .top.Release.Service }}
helm.sh/chart: {{ .top.Chart.Name }}-{{ .top.Chart.Version }}
{{- end }}

{{- define "crawl2chat.image" -}}
{{- with .top.Values.image.registry }}{{ . }}/{{ end -}}
crawl2chat-{{ .name }}:{{ include "crawl2chat.tag" .top }}
{{- end }}

{{/* A tag names version and commit: nodes keep an image that they have, so the same name for other code rolls nothing out. */}}
{{- define "crawl2chat.tag" -}}
{{- if not .Values.image.tag }}
{{- fail "image.tag is empty: set it to the tag of your images, which `make tag` prints" }}
{{- end }}
{{- if eq .Values.image.tag "latest" }}
{{- fail "image.tag is `latest`, which names no version, so that an upgrade would roll nothing out: set it to what `make tag` prints" }}
{{- end }}
{{- .Values.image.tag }}
{{- end }}

{{- define "crawl2chat.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* 50000 is the user of Airflow's chart: all pods write to one volume. */}}
{{- define "crawl2chat.podSecurity" -}}
runAsNonRoot: true
runAsUser: 50000
runAsGroup: 50000
fsGroup: 50000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "crawl2chat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "crawl2chat.s3" -}}
{{ hasPrefix "s3://" .Values.artifacts.root | ternary "yes" "" }}
{{- end }}

{{- define "crawl2chat.claim" -}}
{{ .Values.volume.existingClaim | default (printf "%s-data" .Release.Name) }}
{{- end }}

{{/* labels and annotations of a pod: `pods` of all, and its component's own. Ours cannot be replaced: they select. */}}
{{- define "crawl2chat.podMetadata" -}}
labels: {{- merge (include "crawl2chat.selector" . | fromYaml) (.spec.podLabels | default dict) .top.Values.pods.podLabels | toYaml | nindent 2 }}
{{- with merge (dict) (.spec.podAnnotations | default dict) .top.Values.pods.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a pod is placed, and with what priority: a component's own keys replace those of `pods`. */}}
{{- define "crawl2chat.placement" -}}
{{- $found := dict }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "schedulerName" }}
{{- with get $.spec $key | default (get $.top.Values.pods $key) }}
{{- $_ := set $found $key . }}
{{- end }}
{{- end }}
{{- with $found }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* Of every container that reads or writes artifacts: `own` of its template, then `pods.extraEnv`, then its component's.
     The last of a name is taken. */}}
{{- define "crawl2chat.environment" -}}
{{- $all := concat (include "crawl2chat.ourEnvironment" .top | fromYamlArray) (.own | default list) .top.Values.pods.extraEnv (.spec.extraEnv | default list) }}
{{- $last := dict }}
{{- range $place, $variable := $all }}
{{- $_ := set $last $variable.name $place }}
{{- end }}
{{- $kept := list }}
{{- range $place, $variable := $all }}
{{- if eq $place (get $last $variable.name) }}
{{- $kept = append $kept $variable }}
{{- end }}
{{- end }}
{{- toYaml $kept }}
{{- end }}

{{- define "crawl2chat.ourEnvironment" -}}
- name: HOME
  value: /tmp
{{- with include "crawl2chat.proxies" . }}
{{ . }}
{{- end }}
{{- if include "crawl2chat.s3" . }}
- name: AWS_DEFAULT_REGION
  value: {{ .Values.artifacts.s3.region | quote }}
{{- with .Values.artifacts.s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.artifacts.s3.secretName }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: access-key}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: secret-key}}
{{- end }}
{{- end }}
{{- end }}

{{/* In both spellings, since libraries differ. What lies in the cluster is never asked for through a proxy. */}}
{{- define "crawl2chat.proxies" -}}
{{- with .Values.proxy }}
{{- if or .http .https }}
{{- $inside := list "localhost" "127.0.0.1" ".svc" ".cluster.local" "$(KUBERNETES_SERVICE_HOST)" }}
{{- range $name := list "web" "history-server" "postgresql" }}
{{- $inside = append $inside (printf "%s-%s" $.Release.Name $name) }}
{{- end }}
{{- $inside = append $inside (printf "%s-api-server" $.Values.airflow.release) }}
{{- range $name, $value := dict "http_proxy" .http "https_proxy" .https "no_proxy" (concat $inside .noProxy | join ",") }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
- name: {{ upper $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "crawl2chat.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .top.Values.volume.enabled }}
- {name: data, mountPath: /data}
{{- end }}
{{- with concat .top.Values.pods.extraVolumeMounts (.spec.extraVolumeMounts | default list) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "crawl2chat.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .top.Values.volume.enabled }}
- name: data
  persistentVolumeClaim: {claimName: {{ include "crawl2chat.claim" .top }}}
{{- end }}
{{- with concat .top.Values.pods.extraVolumes (.spec.extraVolumes | default list) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A Service on a component's only port, and how many of its pods may be evicted at once. `name`: the port's. */}}
{{- define "crawl2chat.service" }}
apiVersion: v1
kind: Service
metadata:
  name: {{ .top.Release.Name }}-{{ .component }}
  labels: {{- include "crawl2chat.labels" (dict "top" .top "component" .component) | nindent 4 }}
spec:
  selector: {{- include "crawl2chat.selector" (dict "top" .top "component" .component) | nindent 4 }}
  ports: [{name: {{ .name | default "http" }}, port: {{ .port }}, targetPort: {{ .name | default "http" }}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .top.Release.Name }}-{{ .component }}
  labels: {{- include "crawl2chat.labels" (dict "top" .top "component" .component) | nindent 4 }}
spec:
  maxUnavailable: 1 # a single replica may be evicted, several one at a time
  selector:
    matchLabels: {{- include "crawl2chat.selector" (dict "top" .top "component" .component) | nindent 6 }}
{{- end }}
