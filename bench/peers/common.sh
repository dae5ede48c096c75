# The common part of the peers' scripts. A script sets `cpu`, and `redis_port` if it uses Redis, and sources this file.
#   $dir               a temporary folder, which is removed when the script ends
#   run COMMAND…       starts a command on the CPU; its pid is in $!, and it ends with the script
#   start_redis        starts a Redis server, waits until it answers, and prints its pid
#   serve [LOG]        prints the pid of the last command, waits for its end, and shows LOG if it failed
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
