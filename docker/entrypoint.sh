#!/bin/bash
# What a container starts: Spark's driver or executor, as Spark on Kubernetes asks for them, or any other command as is.
set -euo pipefail

# DeepSpeed writes a lock file beside its op, and the image is read-only.
if [ -d /opt/crawl2chat/torch_extensions ] && [ ! -e "$TORCH_EXTENSIONS_DIR" ]; then
  cp -a /opt/crawl2chat/torch_extensions "$TORCH_EXTENSIONS_DIR"
fi

# WARC files and unfinished parts lie there, on a disk; what a killed process left there goes.
case ${TMPDIR:-} in
  /scratch/*)
    mkdir -p "$TMPDIR"
    find "$TMPDIR" -mindepth 1 -delete
    ;;
esac

case ${1:-} in
  driver)
    shift
    set -- spark-submit --deploy-mode client --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" "$@"
    ;;
  executor)
    options=()
    for name in $(compgen -v SPARK_JAVA_OPT_ | sort -V); do
      options+=("${!name}")
    done
    set -- java "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
      -cp "${SPARK_CONF_DIR:-$SPARK_HOME/conf}:${SPARK_CLASSPATH:-}:$SPARK_HOME/jars/*" \
      org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
      --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
      --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
      --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
    ;;
esac
exec "$@"
