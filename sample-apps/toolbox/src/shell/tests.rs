//! Scripts in, output out.

use std::collections::BTreeMap;
use std::path::Path;

use crate::applets;
use crate::command::Command;
use crate::io::{Input, Output};
use crate::runtime;

/// Runs `sh -c SCRIPT` and returns what it prints on both outputs, and its exit code if not 0.
fn sh_in(cwd: &Path, script: &str, input: &str) -> String {
    let (stdout, stderr) = (Output::memory(), Output::memory());
    let command = Command {
        name: "sh".to_owned(),
        args: ["-c", script, "sh", "one", "two words"].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("HOME".to_owned(), "/home".to_owned())]),
        cwd: cwd.to_owned(),
        stdin: Input::text(input),
        stdout: stdout.clone(),
        stderr: stderr.clone(),
    };
    let code = runtime::run(applets::run(command));
    let mut text = String::from_utf8_lossy(&stdout.take()).into_owned();
    let errors = String::from_utf8_lossy(&stderr.take()).into_owned();
    if !errors.is_empty() {
        text += &format!("! {errors}");
    }
    if code != 0 {
        text += &format!("= {code}");
    }
    text
}

#[track_caller]
fn check(script: &str, expected: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let shown = sh_in(folder.path(), script, "first\nsecond line\nthird");
    assert_eq!(shown, expected, "{script}");
}

#[test]
fn lists_and_exit_codes() {
    check("echo a; echo b", "a\nb\n");
    check("true && echo yes || echo no", "yes\n");
    check("false && echo yes || echo no", "no\n");
    check("! false; echo $?", "0\n");
    check("(exit 3); echo $?", "3\n");
    check("exit 7; echo never", "= 7");
    check(
        "nosuch; echo $?",
        "127\n! nosuch: not found; the toolbox has no programs but its own: \
        see `busybox --list`\n",
    );
    check(
        "echo 'unfinished",
        "! sh: syntax error: unterminated single quote at 1,6 \
        (detected near line 1 col 17)\n= 2",
    );
}

#[test]
fn set_e_ends_at_failures_that_nobody_looks_at() {
    check("set -e; false; echo never", "= 1");
    check("set -e; if false; then :; fi; false || echo caught; ! true; echo end", "caught\nend\n");
    check("set -e; f() { false; echo in; }; f || echo no; f; echo never", "in\n= 1");
    check(
        "set -eu; echo ${missing:-there}; echo $missing; echo never",
        "there\n! sh: missing: parameter not set\n= 1",
    );
    check("set -o pipefail; false | true; echo $?", "1\n");
    // What is ignored in a list is so as the last command of a loop, too.
    check(
        "set -e; for f in a b; do [ $f = a ] && echo hit; done; if :; then false && :; fi; \
        case x in x) false && :;; esac; { false && :; }; while true; do false && break; break; \
        done; echo done",
        "hit\ndone\n",
    );
    check("set -e; for f in a; do false; done; echo never", "= 1");
    check("set -e; (false && :); echo never", "= 1");
    check("set -e; f() { false && :; }; f; echo never", "= 1");
    check("set -e; ((0)); echo never", "= 1");
    check(
        "set -e; { :; } < none; echo never",
        "! sh: can't open none: No such file or directory\n= 1",
    );
}

#[test]
fn words_are_expanded_split_and_quoted() {
    check(r#"a="x  y"; echo $a "$a" '$a' \$a"#, "x y x  y $a $a\n");
    check(
        r#"printf '<%s>' "$@" $* "$*"; echo"#,
        "<one><two words><one><two><words><one two words>\n",
    );
    check(r#"set --; printf '<%s>' a "$@" "" b; echo $#"#, "<a><><b>0\n");
    check(r#"IFS=,; a=1,2,,3; printf '<%s>' $a"#, "<1><2><><3>");
    check("echo $((2 + 3 * 4)) $((7 / 2)) $((1 << 4)) $((5 > 3 ? 10 : 20))", "14 3 16 10\n");
    check("i=5; : $((i += 2)) $((i++)); echo $i $((-i)) $((i ** 2))", "8 -8 64\n");
    check("echo $((1 / 0))", "! sh: arithmetic expression \"1 / 0\": division by zero\n= 1");
    check("echo $(echo a; echo b) \"$(printf 'x\\n\\n')\" `echo c`", "a b x c\n");
    check("echo {a,b}{1..3}", "a1 a2 a3 b1 b2 b3\n");
    check("echo ~ ~/x '~'", "/home /home/x ~\n");
    check(r#"echo $'a\tb' "tab\t""#, "a\tb tab\\t\n");
}

#[test]
fn parameters_have_their_operators() {
    check("echo ${x:-d} ${x:=e} $x ${x:+f} ${#x} ${y+set}", "d e e f 1\n");
    check(
        "f=/a/b/c.tar.gz; echo ${f##*/} ${f%/*} ${f%%.*} ${f#*/} ${f%.gz}",
        "c.tar.gz /a/b /a/b/c a/b/c.tar.gz /a/b/c.tar\n",
    );
    check(
        "s=hello; echo ${s:1:3} ${s: -2} ${s/l/L} ${s//l/L} ${s^} ${s^^}",
        "ell lo heLlo heLLo Hello HELLO\n",
    );
    check("echo ${missing?is not there}; echo never", "! sh: missing: is not there\n= 1");
    check(
        "list=(a 'b c' d); echo ${list[1]} ${#list[@]}; list+=(e); echo \"${list[@]}\"",
        "b c 3\na b c d e\n",
    );
}

#[test]
fn loops_and_conditions() {
    check("for i in a b 'c d'; do echo \"<$i>\"; done", "<a>\n<b>\n<c d>\n");
    check("for i; do echo $i; done", "one\ntwo words\n");
    check(
        "i=0; while [ $i -lt 3 ]; do i=$((i+1)); [ $i = 2 ] && continue; echo $i; done",
        "1\n3\n",
    );
    check("until false; do echo once; break; done", "once\n");
    check("for ((i=0; i<3; i++)); do echo -n $i; done", "012");
    check(
        "for a in 1 2; do for b in 1 2; do [ $b = 2 ] && continue 2; echo $a$b; done; done",
        "11\n21\n",
    );
    check("case abc in b*) echo b;; a*|x) echo a;; *) echo other;; esac", "a\n");
    check("case 'a*' in 'a*') echo literal;; esac; case ab in 'a*') echo no;; esac", "literal\n");
    check(
        "if [ -z '' ] && [ 2 -gt 1 ] && [[ abc == a?c && abc =~ b(.) ]]; then \
        echo ${BASH_REMATCH[1]}; elif true; then echo no; fi",
        "c\n",
    );
    check("test a = b -o 1 -eq 1 && echo yes", "yes\n");
}

#[test]
fn functions_have_parameters_and_locals() {
    check(
        "f() { local x=in; echo $x $1 $#; return 4; }; x=out; f a b; echo $? $x $1",
        "in a 2\n4 out one\n",
    );
    check("f() { f; }; f", "! sh: more than 64 calls within each other\n= 1");
    check("x=1 env | grep ^x=; echo [$x]", "x=1\n[]\n");
    check("export y=2; env | grep ^y=; unset y; echo [$y]", "y=2\n[]\n");
    check("trap 'echo bye' EXIT; echo hi; exit 3", "hi\nbye\n= 3");
    check("trap 'echo bye; exit 3' TERM; kill $$; echo never", "bye\n= 3");
    check("trap '' INT; kill -INT $$; trap 'echo on' INT; kill -2 1; echo off", "on\noff\n");
    check(
        "trap 'echo bye; exit 4' TERM; (sleep 0.01; kill 1) & sleep 99 & wait; echo never",
        "bye\n= 4",
    );
    check("eval 'a=1; echo $a'; set -- p q; shift; echo $1 $#", "1\nq 1\n");
    check("while getopts ab:c o -a -b val -c rest; do echo $o $OPTARG; done", "a\nb val\nc val\n");
}

#[test]
fn pipes_run_side_by_side() {
    check("yes | head -n 2", "y\ny\n");
    check("printf '3\\n1\\n2\\n' | sort | tail -n 1", "3\n");
    check("echo a b | while read x y; do echo $y $x; done", "b a\n");
    check("seq 100000 | wc -l", "100000\n");
    check("(echo out; echo err >&2) 2>&1 | sort", "err\nout\n");
    check("{ sleep 0.05; echo late; } & echo early; wait; echo end", "early\nlate\nend\n");
    check("sleep 100 & kill $!; wait $!; echo $?", "143\n");
    check("timeout 0.05 sleep 100; echo $?", "124\n");
    check("(exit 5) & wait $!; echo $?", "5\n");
}

#[test]
fn redirections() {
    check("echo a > f; echo b >> f; cat < f; cat f | wc -l", "a\nb\n2\n");
    check(
        "echo x > /no/such/place; echo $?",
        "1\n! sh: can't create /no/such/place: No such file or directory\n",
    );
    check("cat <<E\n$((1+1)) \"$1\" \\$x\nE\n", "2 \"one\" $x\n");
    check("cat <<'E'\n$((1+1))\nE\n", "$((1+1))\n");
    check("cat <<-E\n\tindented\n\tE\n", "indented\n");
    check("cat <<< 'a b'", "a b\n");
    check("exec 3> f; echo three >&3; exec 3>&-; cat f", "three\n");
    check("nosuch 2>/dev/null; echo $?", "127\n");
    check("while read -r line; do echo \"<$line>\"; done < <(printf '1\\n2\\n')", "<1>\n<2>\n");
    check("read a; read b c; cat; echo; echo $a $c", "third\nfirst line\n");
    check(
        "IFS=, read -ra l <<< a,b,,c; echo ${#l[@]} ${l[1]} ${l[3]}; printf 'x;y' | (read -rd';' v; \
        echo $v); read -rsp '' -t9 v; echo $v; read -x",
        "4 b c\nx\nfirst\n! sh: read: -x: unknown option\n= 2",
    );
    check("echo in > f; echo $(< f) \"$(<f)\" `< f` $(< f cat -n)", "in in in 1 in\n");
    check("{ echo o; nosuch; } > f 2>&1; wc -l < f", "2\n");
}

#[test]
fn files_are_named_by_patterns() {
    check(
        "touch b.txt a.txt c.md .hidden; mkdir d; touch d/x.txt; echo *.txt */*.txt *.none",
        "a.txt b.txt d/x.txt *.none\n",
    );
    check("touch 'a b'; for f in *; do echo \"<$f>\"; done; echo '*' \"*\"", "<a b>\n* *\n");
    check(
        "mkdir -p x/y; cd x/y; pwd | sed 's,.*/x/,x/,'; cd ..; ls; cd - | sed 's,.*/x/,x/,'",
        "x/y\ny\nx/y\n",
    );
}

#[test]
fn scripts_come_from_files_and_input() {
    check(
        "printf 'echo from file $1\\nexit 4\\n' > run.sh; sh run.sh arg; echo $?; ./run.sh x",
        "from file arg\n4\nfrom file x\n= 4",
    );
    check(
        "printf 'read x\\nvalue\\necho got $x\\nif true\\nthen echo yes\\nfi\\n' | sh",
        "got value\nyes\n",
    );
    check("printf 'v=1\\n' > lib; . ./lib; echo $v", "1\n");
    check("echo 'echo $0 $1' | sh -s arg", "sh arg\n");
    check("trap 'echo never' EXIT; exec echo instead", "instead\n");
    check(
        "entrypoint cat sh -c 'echo sh'; echo hi > f; entrypoint cat f; echo in | entrypoint cat -; \
        echo 'echo own' > run.sh; entrypoint cat ./run.sh; entrypoint echo",
        "sh\nhi\nin\nown\n\n",
    );
    check("touch f; [ -w f ] && [ -w . ] && [ ! -w g ] && echo yes", "yes\n");
    check("echo $((~1)) $((-7 / 2))", "-2 -3\n");
}

#[test]
fn programs_of_awk() {
    check("printf 'a b\\nc d\\n' | awk '{print $2}'", "b\nd\n");
    check("printf 'x:1\\ny:2\\n' | awk -F: '{s += $2} END {print s, NR}'", "3 2\n");
    check(
        r#"printf 'b\na\nb\n' | awk '{n[$1]++} END {for (k in n) printf "%s=%d\n", k, n[k]}'"#,
        "a=1\nb=2\n",
    );
    check(
        "awk -v n=3 'BEGIN {for (i = 1; i <= n; i++) if (i != 2) print i, i / 2; else continue}'",
        "1 0.5\n3 1.5\n",
    );
    check(
        r#"echo 'k=v w' | awk -F= '{
            sub(/v/, "<&>", $2)
            print $2
            print length($0), substr($0, 2, 3), toupper($1), index($0, "w")
        }'"#,
        "<v> w\n7  <v K 7\n",
    );
    check("seq 5 | awk 'NR == 2, NR == 4 {print} /3/ {next} END {print NR}'", "2\n3\n4\n5\n");
    check("printf 'a,b;c\\n' | awk '{n = split($0, l, /[,;]/); print n, l[1] l[n]}'", "3 ac\n");
    check("seq 3 | awk '{print | \"sort -r\"} $1 > 2 {print $1 > \"f\"}'; cat f", "3\n2\n1\n3\n");
    check(
        "awk 'BEGIN {split(\"10 9 1a b\", l); for (k in l) n[l[k]]; for (k in n) print k}'",
        "9\n10\n1a\nb\n",
    );
    check("awk 'BEGIN {exit 3} END {print \"end\"}'", "end\n= 3");
    // Others go on while it computes.
    check("timeout 0.05 awk 'BEGIN {while (1);}'; echo $?", "124\n");
    check("awk 'BEGIN {do print \"y\"; while (1)}' | head -n 2", "y\ny\n");
    check(
        "awk 'function f(n) {for (;;) if (n) print n} BEGIN {f(7)}' | head -n 2; echo $?",
        "7\n7\n0\n",
    );
    check(
        r#"seq 3 | awk 'function f(n) {
                while (n--) {if (n == 1) continue; s += n}
                return s
            }
            {f($1); for (i in l) break; while (1) {if (++t > 2) break}} END {print s, t}'"#,
        "2 5\n",
    );
    check(
        r#"awk 'function f(n) {return n < 2 ? 1 : n * f(n - 1)}
            BEGIN {print f(5), 1 == 1.0, "a" < "b", 2 ^ 10, 7 % 3, 1e3, 0.1 + 0.2, -2 ^ 2}'"#,
        "120 1 1 1024 1 1000 0.3 -4\n",
    );
    check(
        "echo abc | awk '{print length ($1), substr ($1, 2), 2 ^ 53}'",
        "3 bc 9007199254740992\n",
    );
    check("printf '%s\\n' 'a\\b' | awk -F'\\\\' '{print $2}'", "b\n");
    check("echo '[a]{b}' | awk -F'[][]' '/]{/ {print $2}'", "a\n");
    check("awk 'BEGIN {print (1'", "! awk: syntax error at the end: `,` was expected\n= 2");
}

#[test]
fn text_applets() {
    check(
        "printf 'b 2\\na 10\\nb 2\\n' | sort -u; printf '10\\n9\\n' | sort -n",
        "a 10\nb 2\n9\n10\n",
    );
    check("printf 'x:1\\ny:2\\n' | cut -d: -f2; echo abcdef | cut -c2-4", "1\n2\nbcd\n");
    check("printf 'a\\na\\nb\\n' | uniq -c", "      2 a\n      1 b\n");
    check(
        "echo Hello | tr a-z A-Z; echo aabb | tr -s ab; echo a1b2 | tr -d 0-9",
        "HELLO\nab\nab\n",
    );
    check(
        "printf 'cut\\a\\tr: x\\177\\n' | tr -d '[:cntrl:]'; printf 'a \\x01\\n' | tr -cd '[:print:]'; \
        echo 0xfg | tr -cd '[:xdigit:]'; echo 'a b' | tr '[:graph:]' .",
        "cutr: xa 0f. .\n",
    );
    check("seq 5 | head -n -3; seq 5 | tail -n +4; seq 3 | tac", "1\n2\n4\n5\n3\n2\n1\n");
    check(
        "printf 'one\\ntwo\\nthree\\n' | grep -n 'o$'; echo ab12 | grep -oE '[0-9]+'",
        "2:two\n12\n",
    );
    check("seq 4 | grep -v 2 | grep -c .; echo a | grep -q b; echo $?", "3\n1\n");
    check("echo hello world | sed -e 's/o/0/g' -e 's/\\(h\\)\\(e\\)/\\2\\1/'", "ehll0 w0rld\n");
    check("seq 6 | sed -n '2,4p;$p'; seq 3 | sed '2d;a x'", "2\n3\n4\n6\n1\nx\n3\nx\n");
    check(
        "seq 3 | sed ':a;N;$!ba;s/\\n/,/g'; seq 3 | sed ':a;$!{N;ba};y/\\n/+/'",
        "1,2,3\n1+2+3\n",
    );
    check("echo aab | sed ':x;s/a/c/;tx'; seq 3 | sed '1!G;h;$!d'", "ccb\n3\n2\n1\n");
    check(
        "seq 4 | sed -n 'n;p'; seq 4 | sed '$!N;P;D'; seq 2 | sed b; sed bx",
        "2\n4\n1\n2\n3\n4\n1\n2\n! sed: there is no label x\n= 2",
    );
    check(
        "seq 2 > a; seq 3 > b; sed -n '$p;$=' a b; sed -sn '$p' a b; sed -i 1q a b; cat a b",
        "3\n5\n2\n3\n1\n1\n2\n3\n",
    );
    check("seq 3 | (sed q; cat); seq 3 | (sed -n '$!n;p;q'; cat)", "1\n2\n3\n2\n");
    check(
        "seq 4 | sed '2,3c x'; sed s/a/b/x",
        "1\nx\n4\n! sed: extra characters after a command: x\n= 2",
    );
    check("echo abc > f; sed -i s/b/B/ f; cat f", "aBc\n");
    check(
        "printf '%e|%E|%g|%g|%g|%+d|%+.1f\\n' 12345.678 1 0.0001 1e10 0.00001 5 2",
        "1.234568e+04|1.000000E+00|0.0001|1e+10|1e-05|+5|+2.0\n",
    );
    check("seq -s, 3; seq -s : 2", "1,2,3\n1:2\n");
    check("printf '%d\\n' --9223372036854775808", "0\n= 1");
    check(
        "printf '%05.1f|%-4s|%x|%s\\n' 3.14159 ab 255 z; printf '%s,' a b c",
        "003.1|ab  |ff|z\na,b,c,",
    );
    check(
        "expr 3 + 4 \\* 2; expr abc : 'a\\(.\\)'; basename /a/b.c .c; dirname /a/b",
        "11\nb\nb\n/a\n",
    );
    check(
        "printf 'a b\\nc\\n' | xargs -n 1 echo -; echo 'x y' | xargs -I{} echo '<{}>'",
        "- a\n- b\n- c\n<x y>\n",
    );
    check("printf 'a b\\nc\\n' | xargs -L1 echo -; seq 3 | xargs -rn2 -P4", "- a b\n- c\n1 2\n3\n");
    check("touch -d 2020-01-02 F; date -r F +%F; find . -iname f", "2020-01-02\n./F\n");
    check(
        "date -u -d @0 +%Y-%m-%dT%H:%M:%SZ; date -d 2024-02-29 +%j",
        "1970-01-01T00:00:00Z\n060\n",
    );
    check(
        "echo hi | base64; echo aGkK | base64 -d; printf abc | sha256sum | cut -c1-8",
        "aGkK\nhi\nba7816bf\n",
    );
}

#[test]
fn file_applets() {
    check(
        "mkdir -p a/b; echo 1 > a/b/f; cp -r a c; mv c d; find d -type f; rm -r a d; ls",
        "d/b/f\n",
    );
    check(
        "echo x > f; ln -s f g 2>/dev/null; rm f; rm f; rm -f f; echo $?",
        "0\n! rm: can't remove 'f': No such file or directory\n",
    );
    check(
        "touch a b; rm a; [ -e a ] || echo gone; [ -f b ] && [ ! -s b ] && echo empty",
        "gone\nempty\n",
    );
    check(
        "mkdir -p a/b c; echo 1 > a/b/f; touch a/.g; cp -r a/. c; cp -a a c; cd a; cp -r . ../e; cd ..; \
        find c e -type f",
        "c/.g\nc/a/.g\nc/a/b/f\nc/b/f\ne/.g\ne/b/f\n",
    );
    // A file that is copied onto itself keeps what it holds.
    check(
        "echo text > f; ln f g; ln -s f h; \
        for to in . g h; do cp f $to 2>&1 | sed 's,/.*/,,'; done; cat f",
        "cp: f: it and f are the same file\ncp: f: it and g are the same file\n\
        cp: f: it and h are the same file\ntext\n",
    );
    check("mkdir d; echo text > d/f; ln -s d e; cp e/f d 2> /dev/null || cat d/f", "text\n");
    check("mkdir d; echo data > d/f; mkdir d/e; tar cf - d | tar tf -", "d/\nd/e/\nd/f\n");
    check(
        "mkdir d out; echo data > d/f; tar czf x.tgz d; tar xzf x.tgz -C out; cat out/d/f",
        "data\n",
    );
    check(
        "n=$(printf 'x%.0s' $(seq 120)); mkdir $n; echo deep > $n/$n.txt; tar cf t $n; rm -r $n; \
        tar xmf t; cat $n/$n.txt",
        "deep\n",
    );
    check(
        "printf 'not an archive at all, and so long that it would have to be a block' > t; \
        yes x | head -c 600 >> t; tar xf t",
        "! tar: this does not look like a tar archive\n= 1",
    );
    check("echo text > f; gzip f; ls; zcat f.gz; gunzip f.gz; cat f", "f.gz\ntext\ntext\n");
    check(
        "mkdir d; touch d/a.log d/b.txt; find d -name '*.log' -exec echo found {} \\;",
        "found d/a.log\n",
    );
}

#[test]
fn expressions_of_find() {
    check("touch a b c; find . -name a -o -name b", "./a\n./b\n");
    check("touch a b c; find . -type f ! \\( -name a -o -name b \\)", "./c\n");
    check(
        "touch -d 2020-01-01 a; touch b; find . -mtime +30 \\( -name a -o -name b \\) -delete; ls",
        "b\n",
    );
    check("mkdir -p d/e/f; touch d/e/f/x d/y; find d -mindepth 1 -delete; ls d; echo $?", "0\n");
    check("mkdir d; touch d/x; find . -depth; find . -delete; ls", "./d/x\n./d\n.\n");
    check(
        "mkdir d; touch d/x; find d -name d -delete; echo $?; find d -name d -prune -o -print",
        "1\n! find: d: Directory not empty\n",
    );
    check(
        "touch a b; find . -type f -exec echo + {} +; find a -exec echo {} 1 \\;",
        "+ ./a ./b\na 1\n",
    );
    check("find . \\( -name a", "! find: a ( has no )\n= 2");
    check("find . -name a \\)", "! find: a ) has no (\n= 2");
}

#[test]
fn applets_about_bytes_and_links() {
    check("dd if=/dev/zero of=f bs=4k count=3 status=none; wc -c < f", "12288\n");
    check(
        "dd if=/dev/zero bs=1000 count=2 2>&1 >/dev/null | head -n 2",
        "2+0 records in\n2+0 records out\n",
    );
    check("printf abcdefgh | dd bs=3 skip=1 count=1 status=none", "def");
    check("printf abcdefgh | dd bs=5 2>&1 >/dev/null | head -n 1", "1+1 records in\n");
    check(
        "printf abcdefgh > f; printf XY | dd of=f bs=2 seek=1 conv=notrunc status=none; cat f; \
        printf Z | dd of=f bs=2 seek=1 status=none; echo; cat f",
        "abXYefgh\nabZ",
    );
    check("dd if=nosuch", "! dd: nosuch: No such file or directory\n= 1");
    check(
        "echo one > a; cp a b; cmp a b && echo same; echo two > b; cmp -s a b || echo not",
        "same\nnot\n",
    );
    check("printf 'ab\\n' | od -An -c", "   a   b  \\n\n");
    check("printf 'abcd' | od -A d -t x1 -N 3", "0000000 61 62 63\n0000003\n");
    check("printf 'abcd' | od -t u2 -j 2", "0000002 25699\n0000004\n");
    let zeros = " 0000".repeat(8);
    check("truncate -s 48 z; od -x z", &format!("0000000{zeros}\n*\n0000060\n"));
    check("truncate -s 2k f; fallocate -l 3K g; wc -c < f; wc -c < g", "2048\n3072\n");
    check(
        "mkdir d; echo x > d/f; ln -s d/f g; cat g; ln -s $PWD/d/f d/h; readlink d/h; cat d/h",
        "x\nf\nx\n",
    );
    check(
        "mkdir a b; touch b/f; ln -s a now; ln -sfn b now; ls now; ln b/f hard; ls",
        "f\na\nb\nhard\nnow\n",
    );
}

#[test]
fn what_manifests_do() {
    check(
        "while true; do i=$((i+1)); echo tick $i; [ $i -ge 2 ] && break; sleep 0.01; done",
        "tick 1\ntick 2\n",
    );
    check("echo \"pi is $(echo 'scale' | wc -c)\" && test -n \"$HOME\"", "pi is 6\n");
    check(
        "touch healthy; sleep 0.02; rm -f healthy; cat healthy",
        "! cat: healthy: No such file or directory\n= 1",
    );
}
