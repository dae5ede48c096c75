# What the peers' scripts share; to be sourced, with `cpu` and, where Redis is used, `redis_port` set.
#   $dir               a folder for the run, gone with it
#   run COMMAND…       starts one on the CPU, to be ended with the script; its pid is in $!
#   start_redis        starts a Redis server, waits for it, and prints its pid
#   serve LOG          prints the pid of what was run last, waits for it, and shows LOG if it fails
ulimit -n "$(ulimit -Hn)"

dir=$(mktemp -d)
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 0' INT TERM

run() {
    taskset -c "$cpu" "$@" &
    pids+=($!)
}

start_redis() {
    run redis-server --port "$redis_port" --bind 127.0.0.1 --dir "$dir" \
        --save '' --appendonly no >"$dir/redis.log" 2>&1
    echo "redis_pid=$!"
    until redis-cli -p "$redis_port" ping >/dev/null 2>&1; do sleep 0.1; done
}

serve() {
    local pid=${pids[-1]}
    echo "server_pid=$pid"
    wait "$pid" || { cat "${1:-/dev/null}" >&2; exit 1; }
}
