//! Tests what is let through, what is refused and why, and what the programs then do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Observe, Refusal};

/// A folder with files of all sorts; its path has no part with a dot in front.
struct Tree {
    _folder: TempDir,
    home: PathBuf,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("observe").tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let home = base.join("home");
        for path in [".ssh", "src/.git", "src/deep/.cache/inner", "empty"] {
            fs::create_dir_all(home.join(path)).unwrap();
        }
        for path in [
            ".ssh/id_rsa",
            ".env",
            "src/.git/config",
            "src/.hidden.rs",
            "src/deep/.cache/inner/key",
        ] {
            fs::write(home.join(path), "token SECRET\n").unwrap();
        }
        for path in ["notes.txt", "src/main.rs", "src/deep/lib.rs", "-n", "é ü.txt"] {
            fs::write(home.join(path), "token open\nsecond\n").unwrap();
        }
        fs::create_dir(base.join("elsewhere")).unwrap();
        fs::write(base.join("elsewhere/private"), "token SECRET\n").unwrap();
        symlink("/etc/shadow", home.join("shadow")).unwrap();
        symlink(base.join("elsewhere"), home.join("out")).unwrap();
        symlink(base.join("elsewhere/nothing"), home.join("dangling")).unwrap();
        symlink(home.join(".ssh"), home.join("keys")).unwrap();
        symlink(home.join("notes.txt"), home.join("link.txt")).unwrap();
        symlink("loop", home.join("loop")).unwrap();
        assert!(Command::new("mkfifo").arg(home.join("fifo")).status().unwrap().success());
        Self { _folder: folder, home }
    }

    fn by_default(&self) -> Observe {
        Observe::new(&[], Some(self.home.clone()))
    }

    fn by_owner(&self) -> Observe {
        Observe::new(std::slice::from_ref(&self.home), None)
    }

    /// Puts the path of the tree in place of `H`.
    fn fill(&self, text: &str) -> String {
        text.replace("{H}", self.home.to_str().unwrap())
    }

    /// Gives the arguments, one per line.
    fn args(&self, observe: &Observe, line: &str) -> Result<String, Refusal> {
        observe.check(&self.fill(line), &self.home, false).map(|program| program.args.join("\n"))
    }

    fn accepts(&self, observe: &Observe, line: &str, args: &[&str]) {
        let wanted = args.iter().map(|arg| self.fill(arg)).collect::<Vec<_>>().join("\n");
        match self.args(observe, line) {
            Ok(args) => assert_eq!(args, wanted, "{line}"),
            Err(refusal) => panic!("{line}: {refusal}"),
        }
    }

    fn refuses(&self, observe: &Observe, line: &str, reason: &str) {
        match self.args(observe, line) {
            Ok(args) => panic!("{line} was let through: {args:?}"),
            Err(refusal) => assert_shown(&refusal, line, reason),
        }
    }

    fn run(&self, observe: &Observe, line: &str) -> String {
        let program = observe.check(&self.fill(line), &self.home, false);
        let program = program.unwrap_or_else(|refusal| panic!("{line}: {refusal}"));
        let mut command = Command::new(&program.path);
        command.args(&program.args).current_dir(&self.home).env_clear().env("LC_ALL", "C.UTF-8");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).replace(self.home.to_str().unwrap(), "~")
    }
}

fn assert_shown(refusal: &Refusal, line: &str, reason: &str) {
    let text = refusal.to_string();
    assert!(text.contains(reason), "{line}: {reason:?} is not in {text:?}");
    assert!(!text.chars().any(char::is_control), "{line}: {text:?}");
    assert!(text.chars().count() < 2000, "{line}: {text:?}");
}

#[test]
fn plain_commands_are_let_through() {
    let tree = Tree::new();
    let cases: &[(&str, &[&str])] = &[
        ("uname -a", &["-a"]),
        ("  uname\t-sr  ", &["-s", "-r"]),
        ("uname --kernel-name", &["--kernel-name"]),
        ("pwd", &[]),
        ("whoami", &[]),
        ("nproc --all", &["--all"]),
        ("uptime -p", &["-p"]),
        ("free -h", &["-h"]),
        ("hostname -s", &["-s"]),
        ("hostname --fqdn", &["--fqdn"]),
        ("id", &[]),
        ("id -un root", &["-u", "-n", "root"]),
        ("date", &[]),
        ("date -u +%F", &["-u", "+%F"]),
        ("date '+%Y-%m-%d %H:%M'", &["+%Y-%m-%d %H:%M"]),
        ("date -d 'yesterday 10:00' -Iseconds", &["-d", "yesterday 10:00", "-Iseconds"]),
        ("date -I\n", &["-I"]),
        ("date -r notes.txt", &["-r", "{H}/notes.txt"]),
        ("date --reference notes.txt", &["--reference={H}/notes.txt"]),
        ("sleep 0.5", &["0.5"]),
        ("echo -n 'a  b' \"c\"", &["-n", "a  b", "c"]),
        ("echo a\\ ", &["a "]),
        ("echo '$HOME `x` | * ~ #'", &["$HOME `x` | * ~ #"]),
        ("echo \"a*b\" a\\ b \"\\$x\" a#b a~b", &["a*b", "a b", "$x", "a#b", "a~b"]),
        ("df", &[]),
        ("df -h / .", &["-h", "--", "/", "{H}"]),
        ("df --output=source,pcent -B1M", &["--output=source,pcent", "-B", "1M"]),
        ("ps aux", &["aux"]),
        ("ps -ef", &["-A", "-f"]),
        ("ps -eo pid,comm=", &["-A", "-o", "pid,comm="]),
        ("ps aux --sort=-%mem", &["--sort=-%mem", "aux"]),
        ("ps -p 1,2 -o args", &["-p", "1,2", "-o", "args"]),
    ];
    for (line, args) in cases {
        tree.accepts(&tree.by_default(), line, args);
    }
}

#[test]
fn readers_get_resolved_paths() {
    let tree = Tree::new();
    let cases: &[(&str, &[&str])] = &[
        ("cat notes.txt", &["--", "{H}/notes.txt"]),
        ("cat {H}/notes.txt src/../link.txt", &["--", "{H}/notes.txt", "{H}/notes.txt"]),
        ("cat -- -n", &["--", "{H}/-n"]),
        ("cat notes.txt -n", &["-n", "--", "{H}/notes.txt"]),
        ("cat 'é ü.txt'", &["--", "{H}/é ü.txt"]),
        ("cat absent/x.txt", &["--", "{H}/absent/x.txt"]),
        ("cat notes.txt/x", &["--", "{H}/notes.txt/x"]),
        ("cat src/../../home/notes.txt", &["--", "{H}/notes.txt"]),
        ("head -5 notes.txt", &["-n", "5", "--", "{H}/notes.txt"]),
        ("head -n -5 notes.txt", &["-n", "-5", "--", "{H}/notes.txt"]),
        ("head --lines 5 notes.txt", &["--lines=5", "--", "{H}/notes.txt"]),
        ("head -qc5k notes.txt", &["-q", "-c", "5k", "--", "{H}/notes.txt"]),
        ("tail -n +2 notes.txt", &["-n", "+2", "--", "{H}/notes.txt"]),
        ("wc -l notes.txt", &["-l", "--", "{H}/notes.txt"]),
        ("sha256sum notes.txt", &["--", "{H}/notes.txt"]),
        ("stat -c '%s %n' fifo src", &["-c", "%s %n", "--", "{H}/fifo", "{H}/src"]),
        ("ls -la", &["-l", "--ignore=keys", "--", "{H}"]),
        ("ls -la src", &["-l", "--", "{H}/src"]),
        ("ls -A --recursive src", &["--recursive", "--", "{H}/src"]),
        ("ls -R src", &["-R", "--", "{H}/src"]),
        ("ls --color=never -I '*.rs' src", &["--color=never", "-I", "*.rs", "--", "{H}/src"]),
        ("du -sh src", &["-s", "-h", "--exclude=.*", "--", "{H}/src"]),
        ("du -d1", &["-d", "1", "--exclude=.*", "--", "{H}"]),
        ("grep -n open notes.txt", &["-n", "--", "open", "{H}/notes.txt"]),
        ("grep -e '' -- notes.txt", &["-e", "", "--", "{H}/notes.txt"]),
        ("grep -e--file=x notes.txt", &["-e", "--file=x", "--", "{H}/notes.txt"]),
        ("grep --regexp -r notes.txt", &["--regexp=-r", "--", "{H}/notes.txt"]),
        (
            "grep -E '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' notes.txt",
            &["-E", "--", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "{H}/notes.txt"],
        ),
        ("grep -- -r notes.txt", &["--", "-r", "{H}/notes.txt"]),
        ("grep -3 'a$' notes.txt", &["-C", "3", "--", "a$", "{H}/notes.txt"]),
        (
            "grep -ri open --include='*'",
            &["-r", "-i", "--include=*", "--devices=skip", "--exclude=.*", "--exclude-dir=.*"],
        ),
    ];
    for (line, args) in cases {
        let recursive = line.starts_with("grep -ri");
        let args =
            if recursive { [args, &["--", "open", "{H}"][..]].concat() } else { args.to_vec() };
        tree.accepts(&tree.by_default(), line, &args);
    }
}

#[test]
fn owners_roots_show_dot_files() {
    let tree = Tree::new();
    let cases: &[(&str, &[&str])] = &[
        ("cat .env", &["--", "{H}/.env"]),
        ("ls -aR", &["-a", "-R", "--", "{H}"]),
        ("ls -la src", &["-l", "-a", "--", "{H}/src"]),
        ("du", &["--", "{H}"]),
        ("grep -r x", &["-r", "--devices=skip", "--", "x", "{H}"]),
        ("find", &["{H}"]),
        ("find src -mindepth 2 -o -name x", &["{H}/src", "-mindepth", "2", "-o", "-name", "x"]),
        ("find keys", &["{H}/.ssh"]),
    ];
    for (line, args) in cases {
        tree.accepts(&tree.by_owner(), line, args);
    }
    tree.refuses(&tree.by_owner(), "cat shadow", "not among what may be read");
    tree.refuses(&tree.by_owner(), "cat out/private", "not among what may be read");
}

#[test]
fn find_expressions_are_enclosed() {
    let tree = Tree::new();
    const PRUNE: [&str; 11] =
        ["(", "-name", ".*", "-prune", "-false", ")", "-o", "(", "!", "-path", "*/.*"];
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("find", &["{H}"], &["-print", ")"]),
        ("find . -maxdepth 1", &["{H}", "-maxdepth", "1"], &["-print", ")"]),
        ("find src -name '*.rs'", &["{H}/src"], &["(", "-name", "*.rs", ")", "-print", ")"]),
        (
            "find . -type f -o -print0 -maxdepth 2",
            &["{H}", "-maxdepth", "2"],
            &["(", "-type", "f", "-o", "-print0", "-true", ")", ")"],
        ),
        (
            "find . \\( -name -exec \\) '!' -newer notes.txt",
            &["{H}"],
            &["(", "(", "-name", "-exec", ")", "!", "-newer", "{H}/notes.txt", ")", "-print", ")"],
        ),
    ];
    for (line, front, back) in cases {
        tree.accepts(&tree.by_default(), line, &[front, &PRUNE[..], back].concat());
    }
}

#[test]
fn shell_syntax_is_refused() {
    let tree = Tree::new();
    for line in [
        "cat a | sh",
        "ls; id",
        "ls && id",
        "ls &",
        "cat < a",
        "echo a > b",
        "echo `id`",
        "(id)",
        "echo $(id)",
        "echo ${HOME}",
        "echo $HOME",
        "echo \"$HOME\"",
        "echo \"`id`\"",
        "ls\nid",
        "ls *.rs",
        "ls a?",
        "ls [ab]",
        "ls {a,b}",
        "ls ~",
        "ls ~/x",
        "ls # all",
        "#",
        "find ( -print )",
    ] {
        tree.refuses(&tree.by_default(), line, "no shell is involved");
    }
    for (line, reason) in [
        ("ls *", "find -name"),
        ("ls ~", "does not expand"),
        ("ls | wc", "--exec shell"),
        ("", "empty"),
        ("  \t ", "empty"),
        ("''", "not a command"),
        ("echo 'a", "left open"),
        ("echo \"a", "left open"),
        ("echo a\\", "left open"),
        ("echo a\0b", "NUL"),
        ("\0", "NUL"),
    ] {
        tree.refuses(&tree.by_default(), line, reason);
    }
}

#[test]
fn limits_hold() {
    let tree = Tree::new();
    let observe = tree.by_default();
    tree.refuses(&observe, &format!("echo {}", "a".repeat(8 * 1024)), "8192 bytes");
    tree.refuses(&observe, &format!("echo {}", "a ".repeat(64)), "64 words");
    assert!(tree.args(&observe, &format!("echo {}", "a ".repeat(63))).is_ok());
    let refusal = tree.args(&observe, &"é\u{1b}".repeat(2000)).unwrap_err();
    let quoted = refusal.to_string().split('"').nth(1).unwrap().chars().count();
    assert!(quoted <= 201, "{quoted}");
    assert_shown(&refusal, "long", "\\u{1b}");
}

#[test]
fn unknown_commands_are_refused() {
    let tree = Tree::new();
    for (line, reason) in [
        ("rm -rf .", "not a command that only observes; allowed: arch cat"),
        ("sh -c id", "--exec shell"),
        ("env", "not a command"),
        ("FOO=1 ls", "not a command"),
        ("LS", "not a command"),
        ("ls\u{a0}-l", "not a command"),
        ("/usr/bin/ls", "bare name"),
        ("./ls", "bare name"),
        ("../bin/ls", "bare name"),
    ] {
        tree.refuses(&tree.by_default(), line, reason);
    }
}

#[test]
fn options_that_are_not_listed_are_refused() {
    let tree = Tree::new();
    for line in [
        "tail -f notes.txt",
        "tail -F notes.txt",
        "tail --follow notes.txt",
        "tail -5f notes.txt",
        "tail --retry notes.txt",
        "tail --pid=1 notes.txt",
        "tail -n 1 notes.txt -f",
        "tail --fol notes.txt",
        "tail -nf notes.txt",
        "head --line=5 notes.txt",
        "date -s now",
        "date --set=now",
        "date -us now",
        "date -f notes.txt",
        "date --se now",
        "date --file=notes.txt",
        "date 010100002030",
        "date -- 010100002030",
        "date +%F +%F",
        "date -d 'TZ=\"/etc/shadow\" now'",
        "date '+%999999999d'",
        "date -Inow",
        "hostname new",
        "hostname -F notes.txt",
        "hostname -b x",
        "hostname -- new",
        "hostname -y",
        "grep --file=/etc/passwd x",
        "grep -f notes.txt x",
        "grep -rf notes.txt",
        "grep -R x .",
        "grep --dereference-recursive x .",
        "grep --rec x .",
        "grep -P x notes.txt",
        "grep '((a{255}){255}){255}' notes.txt",
        "grep -e 'a{32767}' notes.txt",
        "grep '\\(a\\{99\\}\\)\\{99\\}' notes.txt",
        "grep '(a|b{1,100}){100}' notes.txt",
        "grep 'a{99999999999999999999999' notes.txt",
        "grep -d recurse x .",
        "grep --directories=recurse x .",
        "grep -D read x fifo",
        "grep --exclude-from=notes.txt x notes.txt",
        "ls -L",
        "ls -H",
        "ls --dereference",
        "ls --hyperlink",
        "ls --rec",
        "ls -lL",
        "ls -f",
        "ls --dereference-command-line",
        "du -L",
        "du -D",
        "du -H",
        "du -X notes.txt",
        "du --files0-from=notes.txt",
        "du --exclude-from=notes.txt",
        "wc --files0-from=notes.txt",
        "sha256sum -c notes.txt",
        "sha256sum --check notes.txt",
        "stat -L notes.txt",
        "stat --printf=%1000000d notes.txt",
        "df --sync",
        "free -s 1",
        "free -c 5",
        "free -hs1",
        "ps auxe",
        "ps e",
        "ps eww",
        "ps -E",
        "ps axe",
        "ps aux e",
        "ps -o environ",
        "ps -o pid,environ",
        "ps -eo 'pid environ'",
        "ps -u x",
        "ps -ex",
        "ps -C cat",
        "ps --user 'x e'",
        "ps -p e",
        "ps -p ''",
        "ps -- e",
        "ps --sort=environ",
        "find . -exec sh ;",
        "find . -exec sh '{}' '+'",
        "find . -execdir id",
        "find . -ok id",
        "find . -okdir id",
        "find . -delete",
        "find . -fprint x",
        "find . -fprint0 x",
        "find . -fprintf x %p",
        "find . -fls x",
        "find -files0-from notes.txt",
        "find -L .",
        "find -H .",
        "find -P .",
        "find -D exec .",
        "find -O3 .",
        "find . -follow",
        "find . -depth",
        "find . -d",
        "find . -newerma notes.txt",
        "find . -newerXY x",
        "find . -neweram /etc/shadow",
        "find . -samefile /etc/shadow",
        "find . , -print",
        "find . -print notes.txt",
        "find . -regex x",
        "find . -anewer /etc/shadow",
        "find . -mindepth 2",
        "find . -maxdepth -1",
        "find . -printf %9999d",
        "find . -newermt 'TZ=\"x\"'",
        "find . -context x",
        "find . -help",
        "find . --help",
        "id -Z",
        "id -- -x",
        "id 'a b'",
        "sleep infinity",
        "sleep 1e9",
        "sleep 1 2",
        "sleep -1",
        "nproc --ignore=1",
        "uname -x",
        "uname x",
        "uname --all=x",
        "whoami x",
        "pwd x",
        "uptime x",
        "cat --number=1 notes.txt",
        "cat ---n notes.txt",
        "uname -é",
    ] {
        let args = tree.args(&tree.by_default(), line);
        let reason = if line.ends_with(';') { "no shell" } else { "`" };
        assert_shown(&args.expect_err(line), line, reason);
    }
}

#[test]
fn input_that_the_caller_sends_is_read_where_no_file_is_named() {
    let tree = Tree::new();
    let observe = tree.by_default();
    let args = |line: &str| {
        let program = observe.check(&tree.fill(line), &tree.home, true);
        program.map(|program| program.args)
    };
    for (line, expected) in [
        ("cat", &[][..]),
        ("wc -l", &["-l"]),
        ("cat -", &["--", "-"]),
        ("grep x", &["--", "x"]),
        ("head -n 3", &["-n", "3"]),
    ] {
        assert_eq!(args(line).unwrap(), expected, "{line}");
    }
    assert!(args("cat /etc/shadow").is_err() && args("cat - /etc/shadow").is_err());
}

#[test]
fn missing_words_are_told() {
    let tree = Tree::new();
    for (line, reason) in [
        ("cat", "no input"),
        ("cat -", "no input"),
        ("head", "no input"),
        ("tail -n 5", "no input"),
        ("wc -l", "no input"),
        ("sha256sum -- -", "no input"),
        ("grep x", "no input"),
        ("grep x -", "no input"),
        ("grep -r x -", "no input"),
        ("grep -e x", "no input"),
        ("grep", "a pattern"),
        ("head -n", "needs a value"),
        ("grep notes.txt -e", "needs a value"),
        ("head --lines", "needs a value"),
        ("find . -name", "needs a value"),
        ("sleep", "seconds"),
        ("find . \\(", "parentheses"),
        ("find . \\) -o -print -o \\(", "parentheses"),
    ] {
        tree.refuses(&tree.by_default(), line, reason);
    }
}

#[test]
fn paths_outside_are_refused_alike() {
    let tree = Tree::new();
    let paths = [
        "/etc/shadow",
        "/etc/passwd",
        "/etc/absent",
        "/absent",
        "../elsewhere/private",
        "../elsewhere/absent",
        "../elsewhere/../home/notes.txt",
        "../absent/../home/notes.txt",
        "shadow",
        "shadow/..",
        "out/private",
        "out/absent",
        "out/../home/notes.txt",
        "dangling",
        "dangling/x",
        "loop",
        "keys/id_rsa",
        ".env",
        ".absent",
        ".ssh/id_rsa",
        ".ssh/absent",
        "src/.git/config",
        ".ssh/../notes.txt",
        "absent/../notes.txt",
        "absent/.x",
        "''",
        "/proc/self/environ",
        "/proc/1/environ",
        "/proc/self/root{H}/notes.txt",
        "/proc/self/cwd/notes.txt",
        "/dev/stdin",
        "/dev/fd/0",
        "/dev/zero",
        "/",
        "{H}/../../../../../../etc/shadow",
        "/etc/os-release/../shadow",
        "/proc/meminfo/../1/environ",
    ];
    for path in paths {
        for command in [
            "cat",
            "head -c 5",
            "wc",
            "sha256sum",
            "ls",
            "du",
            "find",
            "find . -newer",
            "grep x",
            "grep -r x",
            "stat",
            "date -r",
        ] {
            let line = format!("{command} {path}");
            tree.refuses(&tree.by_default(), &line, "is not among what may be read");
        }
    }
    let text = |path: &str| {
        let refusal = tree.args(&tree.by_default(), &format!("cat {path}")).unwrap_err();
        refusal.to_string().replace(path, "PATH")
    };
    assert_eq!(text("/etc/passwd"), text("/etc/absent"));
    assert_eq!(text("out/private"), text("out/absent"));
    assert_eq!(text("dangling"), text("shadow"));
    assert_eq!(text(".env"), text(".absent"));
    tree.refuses(&tree.by_default(), "df /etc", "is not among");
}

#[test]
fn facts_may_be_read_from_anywhere() {
    let observe = Observe::new(&[], None);
    let root = observe.default_cwd();
    assert_eq!(root, Path::new("/"));
    let args = |line| observe.check(line, &root, false).map(|program| program.args);
    assert_eq!(args("cat /proc/meminfo").unwrap(), ["--", "/proc/meminfo"]);
    assert!(args("cat /etc/os-release etc/os-release").is_ok());
    assert!(args("df -h /").is_ok());
    for line in ["ls", "cat etc/shadow", "find", "du", "grep -r x", "ls /etc", "ls /proc"] {
        assert!(matches!(args(line), Err(Refusal::Outside { .. })), "{line}");
    }
}

#[test]
fn what_could_block_is_refused() {
    let tree = Tree::new();
    for (line, reason) in [
        ("cat fifo", "wait for ever"),
        ("grep x fifo", "wait for ever"),
        ("grep -r x fifo", "wait for ever"),
        ("tail fifo", "wait for ever"),
        ("cat src", "is a folder; `cat` reads files"),
        ("grep x src", "unless it is given -r"),
    ] {
        tree.refuses(&tree.by_default(), line, reason);
    }
}

#[test]
fn the_whole_system_is_not_walked() {
    let observe = Observe::new(&[PathBuf::from("/")], None);
    let check = |line| observe.check(line, Path::new("/"), false);
    for line in ["find", "find / -maxdepth 1", "du /", "grep -r x .", "ls -R /etc/.."] {
        assert!(matches!(check(line), Err(Refusal::WholeSystem { .. })), "{line}");
    }
    for line in ["cat /proc/self/environ", "find /proc", "cat /dev/sda", "cat /proc/1/maps"] {
        assert!(matches!(check(line), Err(Refusal::Outside { .. })), "{line}");
    }
    assert!(check("ls /").is_ok());
    assert!(check("cat /etc/passwd /proc/version").is_ok());
}

#[test]
fn folders_to_run_in_are_checked() {
    let tree = Tree::new();
    let observe = tree.by_default();
    assert_eq!(observe.default_cwd(), tree.home);
    assert_eq!(observe.check_cwd(&tree.home.join("src/..")).unwrap(), tree.home);
    assert_eq!(observe.check_cwd(Path::new("src")).unwrap(), tree.home.join("src"));
    for path in ["absent", "notes.txt", "fifo"] {
        let refusal = observe.check_cwd(&tree.home.join(path)).unwrap_err();
        assert_shown(&refusal, path, "is not a folder that exists");
    }
    for path in ["/", "/etc", "/absent", "out", ".ssh", "keys", "/etc/os-release/.."] {
        let refusal = observe.check_cwd(Path::new(path)).unwrap_err();
        assert_shown(&refusal, path, "is not among what may be read");
    }
    assert!(observe.check("ls", Path::new("/etc"), false).is_err());
    assert!(observe.check("cat passwd", Path::new("/etc"), false).is_err());
}

#[test]
fn roots_need_to_be_named_in_earnest() {
    let of_root = Observe::new(&[], Some(PathBuf::from("/")));
    assert!(of_root.check("cat /etc/passwd", Path::new("/"), false).is_err());
    let of_none =
        Observe::new(&[PathBuf::from("absent"), PathBuf::new()], Some(PathBuf::from("/tmp")));
    assert_eq!(of_none.default_cwd(), Path::new("/"));
    assert!(of_none.check("ls /tmp", Path::new("/"), false).is_err());
    let later = Observe::new(&[PathBuf::from("/absent-root"), std::env::temp_dir()], None);
    assert_eq!(later.default_cwd(), std::env::temp_dir().canonicalize().unwrap());
    assert!(later.check("cat /absent-root/x", Path::new("/"), false).is_ok());
}

#[test]
fn commands_are_named() {
    let names: Vec<_> = Observe::commands().collect();
    assert!(names.is_sorted());
    for name in [
        "uname",
        "pwd",
        "ls",
        "df",
        "du",
        "free",
        "uptime",
        "hostname",
        "whoami",
        "id",
        "date",
        "ps",
        "cat",
        "head",
        "tail",
        "wc",
        "grep",
        "find",
        "stat",
        "sha256sum",
    ] {
        assert!(names.contains(&name), "{name}");
    }
}

#[test]
fn runs_do_not_reveal_dot_files() {
    let tree = Tree::new();
    let observe = tree.by_default();
    for line in [
        "grep -r SECRET",
        "grep -r SECRET .",
        "grep -rl token",
        "grep -r --include='*' SECRET .",
        "grep -r --include='.*' SECRET",
        "grep -r SECRET --include .env --include=id_rsa src .",
        "grep -rL open",
        "grep -rv open src",
        "grep -rc token src/deep",
        "grep -rh SECRET notes.txt .",
        "find",
        "find . -type f",
        "find . -name '.*'",
        "find . -name id_rsa -o -true",
        "find . -print",
        "find . -path '*ssh*' -o -print0",
        "find . -name zzz -prune -o -print",
        "find . -true -o -true -ls",
        "find . '!' -name notes.txt",
        "find . -not \\( -name zzz \\)",
        "find . -mindepth 1 -name '*r*'",
        "find src -mindepth 1 -maxdepth 3",
        "find . -printf '%p %f\\n'",
        "find . -name zzz -quit",
        "find . -false -quit",
        "find . -quit -o -print",
        "find src empty -empty -o -name '.*'",
        "find . '!' -false -maxdepth 9",
        "du -a",
        "du -ab src",
        "du -a --exclude=zzz .",
        "ls -R",
        "ls -lR src",
        "ls -RU -1",
        "ls -a",
        "ls -lA src",
        "ls --all --recursive",
        "ls -aR --almost-all src/deep",
    ] {
        let output = tree.run(&observe, line);
        for secret in ["SECRET", "id_rsa", "config", "key\n", "/.", ".hidden", ".env", "inner"] {
            assert!(!output.contains(secret), "{line} shows {secret}: {output}");
        }
        assert!(!output.contains("find: ") && !output.contains("grep: "), "{line}: {output}");
    }
}

#[test]
fn runs_show_the_rest() {
    let tree = Tree::new();
    for observe in [tree.by_default(), tree.by_owner()] {
        let sorted = |line| {
            let output = tree.run(&observe, line);
            let mut lines: Vec<_> = output.lines().map(str::to_owned).collect();
            lines.sort();
            lines.join(" ")
        };
        assert_eq!(sorted("find . -name '*b.rs'"), "~/src/deep/lib.rs");
        assert_eq!(sorted("find . -type d -name deep"), "~/src/deep");
        assert_eq!(
            sorted("find src -name main.rs -o -name lib.rs"),
            "~/src/deep/lib.rs ~/src/main.rs"
        );
        assert_eq!(sorted("find . -name deep -prune -o -name main.rs -print"), "~/src/main.rs");
        assert_eq!(sorted("find . -name deep -maxdepth 1"), "");
        assert_eq!(sorted("grep -rl open src"), "~/src/deep/lib.rs ~/src/main.rs");
        assert_eq!(sorted("grep -c token -- -n"), "1");
        assert_eq!(sorted("head -1 notes.txt"), "token open");
        assert_eq!(sorted("tail -n +2 notes.txt"), "second");
        assert_eq!(sorted("cat -n -- -n"), "     1\ttoken open      2\tsecond");
        assert_eq!(sorted("wc -l 'é ü.txt'"), "2 ~/é ü.txt");
        assert_eq!(sorted("ls src/deep"), "lib.rs");
        assert_eq!(sorted("echo -n 'a;b'"), "a;b");
        assert!(sorted("du -s src").ends_with("~/src"));
        assert!(sorted("ps -ef").contains("PID"));
        assert!(sorted("df -h /").contains('%'));
    }
}

#[test]
fn no_hidden_name_is_seen_behind_a_link() {
    let tree = Tree::new();
    symlink(".ssh/id_rsa", tree.home.join("src/[odd] link")).unwrap();
    symlink("../.ssh", tree.home.join("src/deep/up")).unwrap();
    symlink("../notes.txt", tree.home.join("src/fine")).unwrap();
    let observe = tree.by_default();
    for line in [
        "ls -l",
        "ls -lR",
        "ls -o src",
        "ls -g . src",
        "ls -n src/deep",
        "ls --full-time src",
        "find . -ls",
        "find . -type l -printf '%p %l\\n'",
        "find src -printf '%-20l|'",
        "find . -true -o -printf %l -ls",
    ] {
        let output = tree.run(&observe, line);
        for hidden in [".ssh", "id_rsa"] {
            assert!(!output.contains(hidden), "{line} shows {hidden}: {output}");
        }
    }
    assert!(tree.run(&observe, "ls -l src").contains("fine -> ../notes.txt"));
    assert!(tree.run(&observe, "find src -type l -printf '%f %l;'").contains("fine ../notes.txt;"));
    // Without where they lead, their own names are no secret.
    assert!(tree.run(&observe, "ls src").contains("[odd] link"));
    assert!(tree.run(&observe, "find src -printf '%%l %f;'").contains("[odd] link"));
    assert!(tree.run(&tree.by_owner(), "ls -l").contains("keys -> "));
}
