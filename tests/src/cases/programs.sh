# Programs that do much with files and names: `bash programs.sh WHAT SOURCE DIR`. They run on a mount whose nodes are killed
# and on a local directory, and what `show` prints of the two must be the same. SOURCE is made by `make`.
set -euo pipefail

what=$1 source=$2 dir=$3
files=${FILES:-300} rows=${ROWS:-60} commits=${COMMITS:-6}

export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null LC_ALL=C TZ=UTC
export GIT_AUTHOR_NAME=alice GIT_AUTHOR_EMAIL=alice@example.com GIT_AUTHOR_DATE='1700000000 +0000'
export GIT_COMMITTER_NAME=alice GIT_COMMITTER_EMAIL=alice@example.com GIT_COMMITTER_DATE='1700000000 +0000'
# What Git's documentation advises where times change behind its back: a client that caches sets them anew when it closes.
git() {
    command git -c safe.directory='*' -c init.defaultBranch=main -c core.checkStat=minimal -c core.trustctime=false "$@"
}

# Files of all sizes in directories of directories: contents that tell where they belong, the same each time.
tree() {
    local root=$1 n name
    for ((n = 0; n < files; n++)); do
        name=$root/d$((n % 7))/e$((n % 11))
        [ -d "$name" ] || mkdir -p "$name"
        { echo "$n"; head -c $((n * 37 % 9000)) /dev/zero | tr '\0' "\\$(printf %o $((97 + n % 26)))"; } >"$name/f$n"
    done
    chmod 755 "$root"/d0/e0/f0
}

table='CREATE TABLE t (writer INTEGER, n INTEGER, text TEXT, PRIMARY KEY (writer, n));'

case $what in
make)
    mkdir -p "$source"
    tree "$source/tree"
    tar -C "$source" --sort=name --mtime='@1700000000' --owner=0 --group=0 --numeric-owner -cf "$source/tree.tar" tree
    sqlite3 "$source/wal.db" "PRAGMA journal_mode=wal; $table" >/dev/null
    git init --quiet "$source/work"
    cp -r "$source/tree/." "$source/work"
    git -C "$source/work" add .
    git -C "$source/work" commit --quiet -m first
    git clone --quiet --bare "$source/work" "$source/git"
    rm -rf "$source/work" "$source/tree"
    ;;
clone)
    git clone --quiet --no-local "$source/git" "$dir/clone"
    ;;
commit)
    cd "$dir/clone"
    for ((c = 0; c < commits; c++)); do
        for name in d$((c % 7))/e*/f*; do echo "commit $c" >>"$name"; done
        git mv "d$((c % 7))/e$(((c + 1) % 11))" "moved-$c"
        git rm --quiet -r "d$(((c + 3) % 7))/e$(((c + 2) % 11))"
        git add .
        git commit --quiet -m "commit $c"
        git checkout --quiet -b "branch-$c"
        echo "branch $c" >branch
        git add branch
        git commit --quiet -m "branch $c"
        git checkout --quiet main
        git merge --quiet --ff-only "branch-$c"
        # Without a look at its times: a client that caches closes what was merged a second later, and they change once more.
        git rm --quiet --force branch
        git commit --quiet -m "without branch $c"
    done
    git gc --quiet
    git fsck --full --strict
    [ -z "$(git status --porcelain)" ]
    ;;
databases)
    # In write-ahead mode: a rollback journal needs a read lock made an exclusive one, which this kernel's SMB client cannot do.
    cp "$source/wal.db" "$dir/wal.db"
    sqlite3 -vfs unix-dotfile "$dir/dot.db" "$table"
    echo 0 >"$dir/counter"
    ;;
# One of several writers: the FOURTH argument says to which database, the fifth by which locks, the sixth which writer it is.
write)
    {
        echo '.bail on'
        echo '.timeout 100000'
        for ((n = 0; n < rows; n++)); do
            echo 'BEGIN IMMEDIATE;'
            echo "INSERT INTO t VALUES ($6, $n, printf('%.*c', 100 + $n * 13 % 3000, 'a'));"
            echo "UPDATE t SET text = text || '$6' WHERE writer = $6 AND n % 10 = $n % 10;"
            echo "DELETE FROM t WHERE writer = $6 AND n = $n - 17;"
            echo 'COMMIT;'
        done
    } | sqlite3 -vfs "$5" "$dir/$4.db"
    ;;
# Counts under a lock that all wait for. In place: whether a file that others have open was emptied by a dead node, or is
# written by them, nobody can always tell.
count)
    for ((n = 0; n < rows; n++)); do
        flock "$dir/lock" bash -c 'read -r n <"$1"; echo $((n + 1)) 1<>"$1"' count "$dir/counter"
    done
    ;;
extract)
    tar -C "$dir" --same-permissions -xf "$source/tree.tar"
    ;;
archive)
    # 1 says that the time of a change was another when tar was done: this client's cache hears late of those that it makes
    # itself. What was read has its sum.
    { tar -C "$dir" --sort=name --mtime='@1700000000' --owner=0 --group=0 --numeric-owner --mode=a=r -cf - tree || [ $? -eq 1 ]; } |
        sha256sum >"$dir/sum"
    ;;
# All that must be the same.
show)
    cd "$dir"
    if [ -d clone ]; then
        git -C clone fsck --full --strict 2>&1
        git -C clone for-each-ref
        git -C clone rev-parse 'HEAD^{tree}'
        git -C clone log --format=%H --all --date-order | sort
        git -C clone status --porcelain
        (cd clone && find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum)
    fi
    for db in dot.db wal.db; do
        if [ -e "$db" ]; then
            sqlite3 -readonly "$db" 'PRAGMA integrity_check; SELECT * FROM t ORDER BY writer, n;' | sha256sum
        fi
    done
    if [ -e counter ]; then cat counter; fi
    if [ -d tree ]; then
        (cd tree && find . -type f -print0 | sort -z | xargs -0 sha256sum)
        (cd tree && find . -printf '%y %T@ %P\n' | grep -v ^d | sort)
    fi
    if [ -e sum ]; then cat sum; fi
    ;;
esac
