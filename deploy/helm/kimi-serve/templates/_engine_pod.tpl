{{/* The pod of an engine: of a Deployment, or the leader or a worker of several nodes. Takes a dict of root, name, model,
and role: serving (answers requests) or worker (holds layers only). */}}
{{- define "kimi-serve.enginePod" -}}
{{- $root := .root -}}
{{- $model := .model -}}
{{- $store := include "kimi-serve.store" $root -}}
metadata:
  labels:
    {{- include "kimi-serve.selector" (list $root "engine") | nindent 4 }}
    kimi-serve/model: {{ .name | quote }}
    kimi-serve/role: {{ .role }}
    {{- with $root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $model.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "kimi-serve.fullname" $root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- with $model.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  securityContext:
    {{- include "kimi-serve.podSecurity" $root | nindent 4 }}
  # preStop, the drain, and some seconds for the process to end.
  terminationGracePeriodSeconds: {{ add $model.preStopSeconds $model.drainSeconds 20 }}
  topologySpreadConstraints:
    {{- include "kimi-serve.spread" (list $root "engine") | trim | nindent 4 }}
  {{- if and $model.download.repository $store }}
  initContainers:
    {{- include "kimi-serve.await" (list $root $model $model.image) | nindent 4 }}
  {{- end }}
  containers:
    - name: engine
      image: {{ $model.image | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        {{- include "kimi-serve.engineArgs" . | nindent 8 }}
      {{- if or $model.env $root.Values.engineKey.secret }}
      env:
        {{- with $root.Values.engineKey }}
        {{- if .secret }}
        - name: VLLM_API_KEY
          valueFrom:
            secretKeyRef: {name: {{ .secret | quote }}, key: {{ .key | quote }}}
        {{- end }}
        {{- end }}
        {{- with $model.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- if eq .role "serving" }}
      ports:
        - {name: http, containerPort: 8000}
      # The port opens when the checkpoint is loaded.
      startupProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ max 1 (ceil (divf $model.startupSeconds 10)) }}
      readinessProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 12
      {{- end }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ $model.preStopSeconds }}}
      resources:
        {{- $resources := deepCopy $model.resources }}
        {{- if gt (int $model.gpus) 0 }}
        {{- $_ := set $resources.limits $model.gpuResource (int $model.gpus) }}
        {{- $_ := set $resources.requests $model.gpuResource (int $model.gpus) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "kimi-serve.containerSecurity" $root | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      volumeMounts:
        - {name: cache, mountPath: /cache}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- if $store }}
        - {name: store, mountPath: /models, readOnly: true}
        {{- end }}
  volumes:
    - name: cache
      emptyDir: {sizeLimit: {{ $model.cacheSize | quote }}}
    - name: tmp
      emptyDir: {sizeLimit: 2Gi}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $model.shmSize | quote }}}
    {{- with $store }}
    - name: store
      {{- . | nindent 6 }}
    {{- end }}
  {{- with $model.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $model.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $model.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* The command line of `kimi-serve engine`: what a person adds comes last and wins. */}}
{{- define "kimi-serve.engineArgs" -}}
{{- $model := .model -}}
- engine
- {{ $model.checkpoint | quote }}
- --host=0.0.0.0
- --port=8000
- {{ printf "--served-model-name=%s" $model.servedName | quote }}
- --shutdown-timeout={{ $model.drainSeconds }}
{{- if gt (int $model.gpus) 1 }}
- --tensor-parallel-size={{ $model.gpus }}
{{- end }}
{{- if gt (int $model.nodes) 1 }}
- --pipeline-parallel-size={{ $model.nodes }}
- --nnodes={{ $model.nodes }}
- --node-rank=$(LWS_WORKER_INDEX)
- --master-addr=$(LWS_LEADER_ADDRESS)
{{- if eq .role "worker" }}
- --headless
{{- end }}
{{- end }}
{{- with $model.adapters }}
- --enable-lora
- --lora-modules
{{- range $adapter, $path := . }}
{{- if eq $adapter $model.servedName }}
{{- fail (printf "adapters.%s: the model has this name itself" $adapter) }}
{{- end }}
- {{ printf "%s=%s" $adapter $path | quote }}
{{- end }}
{{- end }}
{{- range $model.args }}
- {{ . | quote }}
{{- end }}
{{- end }}
