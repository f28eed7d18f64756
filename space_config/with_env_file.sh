#!/bin/sh
# Run a program with the variables of a file that only its owner may read.
# usage: with_env_file.sh FILE PROGRAM [ARGUMENT…]
# The file is read like systemd's EnvironmentFile, without quotes: one NAME=value per line, and
# nothing in it is executed or expanded.
set -eu

file=$1
shift

fail() {
    echo "runner: $*" >&2
    exit 2
}

[ -r "$file" ] || fail "$file is missing. Copy space_config/runner.env.example there."
case $(ls -lnL "$file") in
-r?-------*) ;;
*) fail "other users may read $file, which holds a token. Run: chmod 600 '$file'" ;;
esac

number=0
while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    case $line in
    '' | '#'*) continue ;;
    esac
    name=${line%%=*}
    case $name in
    "$line" | '' | [0-9]* | *[!A-Za-z0-9_]*) fail "line $number of $file is not NAME=value." ;;
    esac
    export "$line"
done <"$file"

exec "$@"
