# The application of a pod in the churn: calls from its first moment on, until it was answered, a host outside that takes
# client certificates and then a pod of the mesh.
#
#   bash -c … churn NAME HOST=ADDRESS…
name=$1
shift
# A pause that starts no process.
exec 9<> <(:)
refused=0 later=0
for to; do
  host=${to%=*} address=${to#*=}
  while :; do
    if ! { exec 3<>"/dev/tcp/$address/80"; } 2>/dev/null; then
      refused=$((refused + 1))
    else
      printf 'GET /?%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$name" "$host" >&3 2>/dev/null
      status=
      IFS=' ' read -r -t 10 -u 3 _ status _ 2>/dev/null
      exec 3>&-
      case $status in
        200) break ;;
        # Its certificate is not there yet; or the listener went while the connection was made.
        503 | '')
          later=$((later + 1))
          [ $((later % 100)) -eq 0 ] && echo "$name: $later times no answer of $host, last '$status'"
          ;;
        *) echo "$name: $host answered $status"; exit 1 ;;
      esac
    fi
    read -r -t 0.02 -u 9
  done
done
echo "refused=$refused later=$later"
