{{/* Names, labels, and what several templates need. */}}

{{- define "understudy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for the suffixes of the objects, and for the ordinal and the hash that a StatefulSet appends. */}}
{{- define "understudy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "understudy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "understudy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The same, for a list of pods. */}}
{{- define "understudy.selector" -}}
app.kubernetes.io/name={{ include "understudy.name" . }},app.kubernetes.io/instance={{ .Release.Name }},app.kubernetes.io/component=proxy
{{- end -}}

{{/* Not empty if the Service finds the proxy that serves by its label. One that is alone needs none. */}}
{{- define "understudy.isByLabel" -}}
{{- if and .Values.store.etcd.endpoints (eq .Values.vip.mode "service") }}true{{ end -}}
{{- end -}}

{{/* Not empty if there is a Service for clients. */}}
{{- define "understudy.hasService" -}}
{{- if and .Values.service.enabled (eq .Values.vip.mode "service") }}true{{ end -}}
{{- end -}}

{{/* The port on which a pod listens for clients. */}}
{{- define "understudy.port" -}}
{{- eq .Values.vip.mode "own" | ternary .Values.vip.port .Values.ports.smb -}}
{{- end -}}

{{/* The first of the proxy's own addresses, as it stands before a port. */}}
{{- define "understudy.ownAddress" -}}
{{- $ip := first .Values.vip.addresses | default "" | splitList "/" | first -}}
{{- contains ":" $ip | ternary (printf "[%s]" $ip) $ip -}}
{{- end -}}

{{/* Where the proxy listens. On a machine's network that is its one address, and not the machine's own. */}}
{{- define "understudy.listen" -}}
{{- $isOne := and (eq .Values.vip.mode "own") (eq (len .Values.vip.addresses) 1) -}}
{{- $isOne | ternary (include "understudy.ownAddress" .) .Values.listenAddress }}:{{ include "understudy.port" . -}}
{{- end -}}

{{/* Where clients in the cluster reach the proxy that serves. */}}
{{- define "understudy.address" -}}
{{- if eq .Values.vip.mode "own" -}}
{{ include "understudy.ownAddress" . }}:{{ .Values.vip.port }}
{{- else -}}
{{ include "understudy.fullname" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.service.port }}
{{- end -}}
{{- end -}}

{{- define "understudy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "understudy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object: a dict with "root", and if it has them "name" or "suffix", "namespace" ("-" for none), "labels" and
"annotations". */}}
{{- define "understudy.metadata" -}}
{{- $root := .root -}}
name: {{ .name | default (printf "%s%s" (include "understudy.fullname" $root) (.suffix | default "")) }}
{{- if ne (.namespace | default "") "-" }}
namespace: {{ .namespace | default $root.Release.Namespace }}
{{- end }}
labels:
  {{- include "understudy.labels" $root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mergeOverwrite (dict) $root.Values.commonAnnotations (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "understudy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "understudy.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "understudy.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{- .repository -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "understudy.claim" -}}
{{- default (printf "%s-store" (include "understudy.fullname" .)) .Values.store.file.existingClaim -}}
{{- end -}}

{{/* A duration of the configuration in milliseconds. */}}
{{- define "understudy.milliseconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul $number (get (dict "ms" 1 "s" 1000 "m" 60000 "min" 60000) $unit | int64) -}}
{{- end -}}

{{- define "understudy.sambaNamespace" -}}
{{- $nodes := .Values.nodes -}}
{{- coalesce (empty $nodes.endpointSlices.service | ternary $nodes.statefulSet.namespace $nodes.endpointSlices.namespace) .Release.Namespace -}}
{{- end -}}

{{/* The nodes that are listed, a line each: name, space, address. */}}
{{- define "understudy.nodes" -}}
{{- with .Values.nodes.statefulSet -}}
{{- if .name -}}
{{- $domain := printf "%s.%s.svc.%s" .service (include "understudy.sambaNamespace" $) $.Values.clusterDomain -}}
{{- range $at := until (int .replicas) }}
{{ $.Values.nodes.statefulSet.name }}-{{ $at }} {{ $.Values.nodes.statefulSet.name }}-{{ $at }}.{{ $domain }}:{{ $.Values.nodes.statefulSet.port }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.nodes.list }}
{{ .name }} {{ .address }}
{{- end -}}
{{- end -}}

{{/* The ports of all nodes, for the NetworkPolicy. */}}
{{- define "understudy.nodePorts" -}}
{{- $ports := list -}}
{{- range splitList "\n" (include "understudy.nodes" . | trim) | compact -}}
{{- $ports = append $ports (splitList ":" . | last) -}}
{{- end -}}
{{- if .Values.nodes.endpointSlices.service -}}
{{- $ports = append $ports (.Values.nodes.endpointSlices.port | int | toString) -}}
{{- end -}}
{{- with .Values.nodes.dns -}}
{{- $ports = append $ports (splitList ":" . | last) -}}
{{- end -}}
{{- $ports | uniq | sortAlpha | join " " -}}
{{- end -}}

{{/* Not empty if the proxy asks the API server for anything. */}}
{{- define "understudy.asksApiServer" -}}
{{- if or .Values.fence.kubernetes.enabled .Values.nodes.endpointSlices.service (include "understudy.isByLabel" .) }}true{{ end -}}
{{- end -}}
