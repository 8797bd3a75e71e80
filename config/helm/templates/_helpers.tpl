{{- /* Names are those of config/default: the operator knows its webhook, Secret and Lease by them. */ -}}
{{- define "labels" -}}
app.kubernetes.io/name: dedup-operator
{{- end }}

{{- define "selector" -}}
app.kubernetes.io/name: dedup-operator
control-plane: controller-manager
{{- end }}

{{- define "image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "webhook" -}}
{{- if eq .Values.connect "Webhook" }}yes{{ end }}
{{- end }}

{{- define "ownCertificate" -}}
{{- if and (eq .Values.connect "Webhook") (not .Values.webhook.certManager) }}yes{{ end }}
{{- end }}

{{- /* namespaceSelector is of which namespaces pods are connected. */ -}}
{{- define "namespaceSelector" -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    {{- if .Values.namespaces }}
    operator: In
    values: {{ toJson .Values.namespaces }}
    {{- else }}
    operator: NotIn
    values: [kube-system, {{ .Release.Namespace }}]
    {{- end }}
{{- end }}

{{- /* subjects is the operator's ServiceAccount. */ -}}
{{- define "subjects" -}}
- kind: ServiceAccount
  name: dedup-operator-controller-manager
  namespace: {{ .Release.Namespace }}
{{- end }}
