{{/* An Ingress or an HTTPRoute of a component's Service, on a host of its own. TLS ends there: pods speak plain HTTP. */}}
{{- define "crawl2chat.exposed" }}
{{- $name := printf "%s-%s" .top.Release.Name .component }}
{{- with .spec.ingress }}
{{- if .enabled }}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ $name }}
  labels: {{- include "crawl2chat.labels" $ | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with .tlsSecret }}
  tls: [{hosts: [{{ $.spec.ingress.host }}], secretName: {{ . }}}]
  {{- end }}
  rules:
    - host: {{ required (printf "%s.ingress.host is empty: name the host under which a browser opens it" $.key) .host }}
      http:
        paths: [{path: /, pathType: Prefix, backend: {service: {name: {{ $name }}, port: {name: http}}}}]
{{- end }}
{{- end }}
{{- with .spec.gateway }}
{{- if .enabled }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {{ $name }}
  labels: {{- include "crawl2chat.labels" $ | nindent 4 }}
spec:
  {{- if not .parentRefs }}
  {{- fail (printf "%s.gateway.parentRefs is empty: name your Gateway, whose listener ends TLS" $.key) }}
  {{- end }}
  parentRefs: {{- toYaml .parentRefs | nindent 4 }}
  hostnames: [{{ required (printf "%s.gateway.host is empty: name the host under which a browser opens it" $.key) .host }}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /}}]
      backendRefs: [{name: {{ $name }}, port: {{ $.port }}}]
{{- end }}
{{- end }}
{{- end }}

{{/* Where a browser finds a component: its `url`, else its Gateway's or Ingress's host, else a forwarded port. */}}
{{- define "crawl2chat.url" -}}
{{- if .spec.url }}
{{- .spec.url }}
{{- else if .spec.gateway.enabled }}
{{- printf "https://%s" .spec.gateway.host }}
{{- else if .spec.ingress.enabled }}
{{- printf "%s://%s" (empty .spec.ingress.tlsSecret | ternary "http" "https") .spec.ingress.host }}
{{- else }}
{{- printf "http://localhost:%v" .port }}
{{- end }}
{{- end }}
