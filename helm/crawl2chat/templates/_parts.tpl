{{- define "crawl2chat.selector" -}}
app.kubernetes.io/name: crawl2chat
app.kubernetes.io/instance: {{ .top.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "crawl2chat.labels" -}}
{{ include "crawl2chat.selector" . }}
app.kubernetes.io/version: {{ .top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .top.Release.Service }}
helm.sh/chart: {{ .top.Chart.Name }}-{{ .top.Chart.Version }}
{{- end }}

{{- define "crawl2chat.image" -}}
{{- with .top.Values.image.registry }}{{ . }}/{{ end -}}
crawl2chat-{{ .name }}:{{ .top.Values.image.tag | default .top.Chart.AppVersion }}
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

{{/* Environment of every container that reads or writes artifacts. */}}
{{- define "crawl2chat.environment" -}}
- name: HOME
  value: /tmp
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

{{- define "crawl2chat.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.volume.enabled }}
- {name: data, mountPath: /data}
{{- end }}
{{- end }}

{{- define "crawl2chat.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.volume.enabled }}
- name: data
  persistentVolumeClaim: {claimName: {{ include "crawl2chat.claim" . }}}
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
