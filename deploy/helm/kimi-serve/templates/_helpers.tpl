{{/* Names and choices. Knows values; writes no object. */}}

{{- define "kimi-serve.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 28 | trimSuffix "-" -}}
{{- end }}

{{/* What selectors match: never changes in a release's life. Takes (root, component). */}}
{{- define "kimi-serve.selector" -}}
app.kubernetes.io/name: kimi-serve
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object. Takes (root, component). */}}
{{- define "kimi-serve.labels" -}}
{{- $root := index . 0 -}}
{{ include "kimi-serve.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Takes (root, image's name). */}}
{{- define "kimi-serve.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $digest := index $image.digests (index . 1) -}}
{{- $tag := $image.tag | default (index . 0).Chart.AppVersion -}}
{{- printf "%s/%s" $image.registry (index . 1) -}}
{{- if $digest }}{{ printf "@%s" $digest }}{{ else }}{{ printf ":%s" $tag }}{{ end -}}
{{- end }}

{{/* Model name -> everything that holds for it, as YAML. */}}
{{- define "kimi-serve.models" -}}
{{- $small := dict "requests" (dict "cpu" "2" "memory" "4Gi") "limits" (dict "memory" "6Gi") -}}
{{- $bundled := dict "kimi-vl-nano" (dict "gpus" 0 "shmSize" "1Gi" "cacheSize" "2Gi" "resources" $small) -}}
{{- range $name, $own := .Values.models | default $bundled }}
{{- $model := mergeOverwrite (deepCopy $.Values.engine) (deepCopy $own) }}
{{- if $model.download.repository }}
{{- $_ := set $model "checkpoint" ($model.checkpoint | default (printf "/models/%s/%s" $name $model.download.revision)) }}
{{- end }}
{{- $_ := set $model "checkpoint" ($model.checkpoint | default "/opt/kimi-vl-nano") }}
{{- $_ := set $model "servedName" ($model.servedName | default $name) }}
{{- $kind := ternary "engine-gpu" "engine-cpu" (gt (int $model.gpus) 0) }}
{{- $_ := set $model "image" ($model.image | default (include "kimi-serve.image" (list $ $kind))) }}
{{ dict $name $model | toYaml }}
{{- end }}
{{- end }}

{{/* The model that the gateway counts with, as YAML. */}}
{{- define "kimi-serve.counted" -}}
{{- $models := include "kimi-serve.models" . | fromYaml -}}
{{- $name := .Values.gateway.model | default (keys $models | sortAlpha | first) -}}
{{- if not (hasKey $models $name) }}{{ fail (printf "gateway.model: %q is none of models" $name) }}{{ end -}}
{{- index $models $name | toYaml -}}
{{- end }}

{{/* What an autoscaler scales. Takes (root, name, model). */}}
{{- define "kimi-serve.scaled" -}}
{{- if gt (int (index . 2).nodes) 1 -}}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else -}}
apiVersion: apps/v1
kind: Deployment
{{- end }}
name: {{ include "kimi-serve.fullname" (index . 0) }}-{{ index . 1 }}
{{- end }}

{{/* The volume behind /models; empty where there is no store. */}}
{{- define "kimi-serve.store" -}}
{{- if .Values.store.image -}}
image:
  reference: {{ .Values.store.image | quote }}
  pullPolicy: IfNotPresent
{{- else if or .Values.store.existingClaim .Values.store.create -}}
persistentVolumeClaim:
  claimName: {{ .Values.store.existingClaim | default (printf "%s-store" (include "kimi-serve.fullname" .)) | quote }}
{{- end }}
{{- end }}
