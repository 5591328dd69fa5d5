//! The table of the commands that only observe, with the arguments each may be given.
//!
//! It must not know how arguments are checked. An option belongs here only if it can neither
//! write, run a program, wait, follow symbolic links, nor read a file that is not checked.

/// One command with all that it may be given; everything else is refused.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    /// The options without a value, short and long ones, separated by spaces.
    pub(super) flags: &'static str,
    /// The options with a value; names that mean the same are separated by spaces.
    pub(super) values: &'static [(&'static str, Takes)],
    /// The option that a number with a dash in front, such as `-5`, stands for.
    pub(super) number: Option<&'static str>,
    /// Options that are passed on under another name.
    pub(super) rewrites: &'static [(&'static str, &'static str)],
    pub(super) operands: Operands,
    pub(super) walk: Option<Walk>,
    /// Options that show dot files. Where those may not be seen they are left out, since there is nothing
    /// to show; what asks for them out of habit (`ls -la`) still gets the rest.
    pub(super) reveals: &'static str,
    /// Options with which it shows where symbolic links lead.
    pub(super) links: &'static str,
}

/// Whether an option takes a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Takes {
    Nothing,
    /// It needs one, attached or as the next word.
    A(Kind),
    /// It may have one, only attached.
    Maybe(Kind),
}

/// What a value has to look like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Any text at all.
    Text,
    /// A regular expression that does not need too much memory.
    Pattern,
    /// Text with `%` fields; a field's width is limited, since the program would fill it in memory.
    Format,
    /// A `Format` with `+` in front.
    PlusFormat,
    /// Decimal digits, few enough for a number.
    Digits,
    /// Numbers with commas between them.
    DigitList,
    /// A number with an optional sign in front and a unit behind.
    Count,
    /// A time span such as `0.5` or `2s`.
    Seconds,
    /// A date in words or digits. Quotes and `=` are left out: `TZ="…"` would open any file.
    Date,
    /// Names of users, fields or units: letters, digits and a little punctuation.
    Name,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Some of these words with commas between them, each with an optional `+`, `-` or `=`.
    ListOf(&'static [&'static str]),
    /// A path that may be read.
    Path,
}

/// What a command takes besides options.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operands {
    /// From `least` to `most` words.
    Words { kind: Kind, least: usize, most: usize },
    /// Anything; options are not even looked for.
    Verbatim,
    /// Paths.
    Paths { accept: Accept, absent: Absent },
    /// A pattern unless an option gave it, then paths of files.
    Search,
    /// Paths, then tests and actions.
    Expression,
}

/// Which paths a command takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Accept {
    /// Regular files, and folders too when the command walks: reading anything else can block.
    Files,
    /// Whatever there is, since it is not opened.
    Entries,
    /// Whatever there is, and `/`.
    Mounts,
}

/// What it means if no path is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Absent {
    /// The command would read its standard input.
    Input,
    /// The folder the command runs in.
    Here,
    /// Nothing is read by path.
    Nothing,
}

/// How a command goes through folders.
#[derive(Debug)]
pub(super) struct Walk {
    /// The options that make it do so; none if it always does.
    pub(super) options: &'static str,
    /// What to add then.
    pub(super) adds: &'static [&'static str],
    /// What to add last to keep it out of dot folders.
    pub(super) hides: &'static [&'static str],
}

impl Command {
    /// Tells what the option or the word of an expression takes, if it is allowed.
    pub(super) fn takes(&self, name: &str) -> Option<Takes> {
        if includes(self.flags, name) {
            return Some(Takes::Nothing);
        }
        let value = self.values.iter().find(|(names, _)| includes(names, name));
        value.map(|(_, takes)| *takes)
    }

    /// Lists the options that are allowed.
    pub(super) fn allowed(&self) -> String {
        let values = self.values.iter().map(|(names, _)| *names);
        let all = [self.flags].into_iter().chain(values).filter(|names| !names.is_empty());
        let list = all.collect::<Vec<_>>().join(" ");
        if list.is_empty() { "none".to_owned() } else { list }
    }
}

/// Tells whether `name` is one of `names`, which spaces separate.
pub(super) fn includes(names: &str, name: &str) -> bool {
    names.split_whitespace().any(|one| one == name)
}

const WHEN: Kind = Kind::OneOf(&["always", "auto", "never"]);

const PLAIN: Command = Command {
    name: "",
    flags: "",
    values: &[],
    number: None,
    rewrites: &[],
    operands: Operands::Words { kind: Kind::Text, least: 0, most: 0 },
    walk: None,
    reveals: "",
    links: "",
};

const READS_FILES: Operands = Operands::Paths { accept: Accept::Files, absent: Absent::Input };

/// The commands that only observe.
pub(super) const COMMANDS: &[Command] = &[
    Command { name: "arch", ..PLAIN },
    Command {
        name: "cat",
        flags: "-A --show-all -b --number-nonblank -e -E --show-ends -n --number -s \
                --squeeze-blank -t -T --show-tabs -u -v --show-nonprinting",
        operands: READS_FILES,
        ..PLAIN
    },
    Command {
        name: "date",
        flags: "-u --utc --universal -R --rfc-email",
        values: &[
            ("-d --date", Takes::A(Kind::Date)),
            ("-r --reference", Takes::A(Kind::Path)),
            (
                "-I --iso-8601",
                Takes::Maybe(Kind::OneOf(&["date", "hours", "minutes", "seconds", "ns"])),
            ),
            ("--rfc-3339", Takes::A(Kind::OneOf(&["date", "seconds", "ns"]))),
        ],
        // Without the plus sign it would be a date to set.
        operands: Operands::Words { kind: Kind::PlusFormat, least: 0, most: 1 },
        ..PLAIN
    },
    Command {
        name: "df",
        flags: "-a --all -h --human-readable -H --si -i --inodes -k -l --local -P --portability \
                -T --print-type --total",
        values: &[
            ("-B --block-size", Takes::A(Kind::Name)),
            ("-t --type", Takes::A(Kind::Name)),
            ("-x --exclude-type", Takes::A(Kind::Name)),
            ("--output", Takes::Maybe(Kind::Name)),
        ],
        operands: Operands::Paths { accept: Accept::Mounts, absent: Absent::Nothing },
        ..PLAIN
    },
    Command {
        name: "du",
        flags: "-0 --null -a --all --apparent-size -b --bytes -c --total -h --human-readable \
                --inodes -k -l --count-links -m -S --separate-dirs --si -s --summarize -x \
                --one-file-system",
        values: &[
            ("-B --block-size", Takes::A(Kind::Name)),
            ("-d --max-depth", Takes::A(Kind::Digits)),
            ("-t --threshold", Takes::A(Kind::Count)),
            ("--exclude", Takes::A(Kind::Text)),
        ],
        operands: Operands::Paths { accept: Accept::Entries, absent: Absent::Here },
        walk: Some(Walk { options: "", adds: &[], hides: &["--exclude=.*"] }),
        ..PLAIN
    },
    Command { name: "echo", operands: Operands::Verbatim, ..PLAIN },
    Command {
        name: "find",
        // `-depth` is left out, since it would make `-prune` do nothing.
        flags: "! ( ) -a -and -o -or -not -true -false -empty -executable -readable -writable \
                -nouser -nogroup -mount -xdev -prune -print -print0 -ls -quit",
        values: &[
            ("-name -iname -path -ipath -wholename -iwholename", Takes::A(Kind::Text)),
            ("-maxdepth -mindepth", Takes::A(Kind::Digits)),
            ("-type -size -perm -user -group", Takes::A(Kind::Text)),
            ("-uid -gid -links -inum", Takes::A(Kind::Count)),
            ("-atime -ctime -mtime -amin -cmin -mmin", Takes::A(Kind::Count)),
            ("-newer", Takes::A(Kind::Path)),
            ("-newermt", Takes::A(Kind::Date)),
            ("-printf", Takes::A(Kind::Format)),
        ],
        operands: Operands::Expression,
        ..PLAIN
    },
    Command {
        name: "free",
        flags: "-b --bytes -k --kibi -m --mebi -g --gibi --kilo --mega --giga --tera --tebi -h \
                --human --si -l --lohi -t --total -w --wide",
        ..PLAIN
    },
    Command {
        name: "grep",
        // Not -P, whose patterns can take for ever, nor -f, -R, -d and -D.
        flags: "-a --text -b --byte-offset -c --count -E --extended-regexp -F --fixed-strings -G \
                --basic-regexp -h --no-filename -H --with-filename -i --ignore-case -I -l \
                --files-with-matches -L --files-without-match -n --line-number \
                --no-group-separator -o --only-matching -q --quiet --silent -r --recursive -s \
                --no-messages -v --invert-match -w --word-regexp -x --line-regexp -z --null-data \
                -Z --null",
        values: &[
            ("-e --regexp", Takes::A(Kind::Pattern)),
            ("-m --max-count", Takes::A(Kind::Digits)),
            ("-A --after-context", Takes::A(Kind::Digits)),
            ("-B --before-context", Takes::A(Kind::Digits)),
            ("-C --context", Takes::A(Kind::Digits)),
            ("--include --exclude --exclude-dir", Takes::A(Kind::Text)),
            ("--binary-files", Takes::A(Kind::OneOf(&["binary", "text", "without-match"]))),
            ("--color --colour", Takes::Maybe(WHEN)),
        ],
        number: Some("-C"),
        operands: Operands::Search,
        walk: Some(Walk {
            options: "-r --recursive",
            adds: &["--devices=skip"],
            // The last of contradicting options counts, so that no --include can undo these.
            hides: &["--exclude=.*", "--exclude-dir=.*"],
        }),
        ..PLAIN
    },
    Command {
        name: "head",
        flags: "-q --quiet --silent -v --verbose -z --zero-terminated",
        values: &[("-c --bytes", Takes::A(Kind::Count)), ("-n --lines", Takes::A(Kind::Count))],
        number: Some("-n"),
        operands: READS_FILES,
        ..PLAIN
    },
    // Not -F, -b and operands, which would set the name.
    Command {
        name: "hostname",
        flags: "-d --domain -f --fqdn --long -i --ip-address -I --all-ip-addresses -s --short",
        ..PLAIN
    },
    Command {
        name: "id",
        flags: "-g --group -G --groups -n --name -r --real -u --user -z --zero",
        operands: Operands::Words { kind: Kind::Name, least: 0, most: 16 },
        ..PLAIN
    },
    Command {
        name: "ls",
        flags: "-a --all -A --almost-all --author -b --escape -B --ignore-backups -c -C -d \
                --directory -F --file-type --full-time -g --group-directories-first -G --no-group \
                -h --human-readable --si -i --inode -k --kibibytes -l -m -n --numeric-uid-gid -N \
                --literal -o -p -q --hide-control-chars -Q --quote-name -r --reverse -R \
                --recursive -s --size -S -t -u -U -v -x -X --zero -1",
        values: &[
            ("--block-size", Takes::A(Kind::Name)),
            ("--color", Takes::Maybe(WHEN)),
            ("--hide", Takes::A(Kind::Text)),
            ("-I --ignore", Takes::A(Kind::Text)),
            ("--sort", Takes::A(Kind::Name)),
            ("--time", Takes::A(Kind::Name)),
            ("--time-style", Takes::A(Kind::OneOf(&["full-iso", "long-iso", "iso", "locale"]))),
        ],
        operands: Operands::Paths { accept: Accept::Entries, absent: Absent::Here },
        walk: Some(Walk { options: "-R --recursive", adds: &[], hides: &[] }),
        reveals: "-a --all -A --almost-all",
        links: "-l -g -n --numeric-uid-gid -o --full-time",
        ..PLAIN
    },
    Command { name: "nproc", flags: "--all", ..PLAIN },
    Command {
        name: "ps",
        flags: "-A -a -c -d -e -f -F -H -j -l -L -P -T -w -y --forest --headers --no-headers",
        values: &[
            ("-o --format", Takes::A(Kind::ListOf(PS_FIELDS))),
            ("--sort", Takes::A(Kind::ListOf(PS_FIELDS))),
            ("-p --pid --ppid", Takes::A(Kind::DigitList)),
            // Not -u and -C: if ps fails to make sense of them it reads all its words once more,
            // as options of BSD, among which `e` shows the environment of other programs.
            ("--user --User", Takes::A(Kind::Name)),
        ],
        // For the same reason.
        rewrites: &[("-e", "-A")],
        operands: Operands::Words { kind: Kind::OneOf(PS_WORDS), least: 0, most: 1 },
        ..PLAIN
    },
    Command { name: "pwd", flags: "-L --logical -P --physical", ..PLAIN },
    Command {
        name: "sha256sum",
        // Not -c, which reads the names of other files from a file.
        flags: "-b --binary -t --text --tag -z --zero",
        operands: READS_FILES,
        ..PLAIN
    },
    Command {
        name: "sleep",
        operands: Operands::Words { kind: Kind::Seconds, least: 1, most: 1 },
        ..PLAIN
    },
    Command {
        name: "stat",
        flags: "-f --file-system -t --terse",
        values: &[("-c --format --printf", Takes::A(Kind::Format))],
        operands: Operands::Paths { accept: Accept::Entries, absent: Absent::Input },
        ..PLAIN
    },
    Command {
        name: "tail",
        // Not -f, -F, --follow, --retry, --pid and -s, which wait.
        flags: "-q --quiet --silent -v --verbose -z --zero-terminated",
        values: &[("-c --bytes", Takes::A(Kind::Count)), ("-n --lines", Takes::A(Kind::Count))],
        number: Some("-n"),
        operands: READS_FILES,
        ..PLAIN
    },
    Command {
        name: "uname",
        flags: "-a --all -s --kernel-name -n --nodename -r --kernel-release -v --kernel-version \
                -m --machine -p --processor -i --hardware-platform -o --operating-system",
        ..PLAIN
    },
    Command { name: "uptime", flags: "-p --pretty -s --since", ..PLAIN },
    Command {
        name: "wc",
        flags: "-c --bytes -m --chars -l --lines -L --max-line-length -w --words",
        operands: READS_FILES,
        ..PLAIN
    },
    Command { name: "whoami", ..PLAIN },
];

/// The option words without a dash that `ps` may be given. None has an `e`, which would show the
/// environment, and with it the secrets, of other programs.
const PS_WORDS: &[&str] = &[
    "a", "aux", "auxf", "auxfw", "auxfww", "auxw", "auxww", "auxwwf", "ax", "axf", "axjf", "axl",
    "axu", "axuf", "axuww", "axww", "f", "l", "u", "ux", "uxf", "uxww", "w", "ww", "x", "xf", "xu",
];

/// The fields that `ps` may show or sort by; `environ` is none of them.
const PS_FIELDS: &[&str] = &[
    "%cpu",
    "%mem",
    "args",
    "bsdstart",
    "bsdtime",
    "c",
    "class",
    "cls",
    "cmd",
    "comm",
    "command",
    "cp",
    "cputime",
    "cputimes",
    "drs",
    "egid",
    "egroup",
    "etime",
    "etimes",
    "euid",
    "euser",
    "fname",
    "gid",
    "group",
    "lstart",
    "lwp",
    "maj_flt",
    "min_flt",
    "ni",
    "nice",
    "nlwp",
    "pcpu",
    "pgid",
    "pgrp",
    "pid",
    "pmem",
    "ppid",
    "pri",
    "psr",
    "rgid",
    "rgroup",
    "rss",
    "rssize",
    "ruid",
    "ruser",
    "s",
    "sess",
    "sid",
    "size",
    "start",
    "start_time",
    "stat",
    "state",
    "stime",
    "sz",
    "thcount",
    "tid",
    "time",
    "tname",
    "trs",
    "tt",
    "tty",
    "ucmd",
    "ucomm",
    "uid",
    "uname",
    "user",
    "vsize",
    "vsz",
    "wchan",
];
