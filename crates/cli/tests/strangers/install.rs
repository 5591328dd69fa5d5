//! The servers, installed once for all tests, and by whichever comes first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const PACKAGE: &str = include_str!("servers/package.json");
const PACKAGE_LOCK: &str = include_str!("servers/package-lock.json");
const REQUIREMENTS: &str = include_str!("servers/requirements.txt");

/// A server from npm.
pub(crate) fn npm(name: &str) -> String {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        installed("npm", &[PACKAGE, PACKAGE_LOCK].concat(), |folder| {
            fs::write(folder.join("package.json"), PACKAGE).unwrap();
            fs::write(folder.join("package-lock.json"), PACKAGE_LOCK).unwrap();
            let args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
            let needs = "install Node.js 18 or newer with npm (Debian: apt-get install nodejs npm)";
            run(Command::new("npm").args(args).current_dir(folder), needs);
        })
    });
    folder.join("node_modules/.bin").join(name).to_str().unwrap().to_owned()
}

/// A Python that has FastMCP.
pub(crate) fn python() -> String {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        installed("pypi", REQUIREMENTS, |folder| {
            fs::write(folder.join("requirements.txt"), REQUIREMENTS).unwrap();
            let needs =
                "install Python 3.10 or newer with venv (Debian: apt-get install python3-venv)";
            let venv = ["-m", "venv", "venv"];
            run(Command::new("python3").args(venv).current_dir(folder), needs);
            let pip = ["-m", "pip", "install", "--quiet", "--no-input", "--only-binary", ":all:"];
            let mut pip_install = Command::new(folder.join("venv/bin/python"));
            pip_install.args(pip).args(["-r", "requirements.txt"]).current_dir(folder);
            run(&mut pip_install, "PyPI must be in reach");
        })
    });
    folder.join("venv/bin/python").to_str().unwrap().to_owned()
}

/// A folder in which `wanted` is installed, which takes `install` if it isn't. Others that want the same
/// meanwhile wait.
fn installed(name: &str, wanted: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("strangers");
    fs::create_dir_all(&all).unwrap();
    let lock = File::create(all.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let (folder, done) = (all.join(name), all.join(format!("{name}.done")));
    if fs::read_to_string(&done).is_ok_and(|is_there| is_there == wanted) {
        return folder;
    }
    for old in [fs::remove_file(&done), fs::remove_dir_all(&folder)] {
        assert!(old.is_ok() || !folder.exists(), "{old:?}");
    }
    fs::create_dir_all(&folder).unwrap();
    install(&folder);
    fs::write(&done, wanted).unwrap();
    folder
}

fn run(command: &mut Command, needs: &str) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "{command:?} failed ({needs}): {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("{command:?} cannot be run: {error}; {needs}"),
    }
}
