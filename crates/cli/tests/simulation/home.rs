//! The folder of a party: what it keeps there outlives its program.

use std::fs;
use std::path::PathBuf;

/// A folder that passes from one life of a program to the next.
///
/// Each life has one of its own, a copy of what stood there when the one before died. So nothing that a program does
/// while it is taken apart, which no program that is killed can do, gets into the next life.
pub(crate) struct Home {
    root: PathBuf,
    lives: usize,
}

impl Home {
    /// A new one, which is empty.
    pub(crate) fn new(root: PathBuf) -> Self {
        let home = Self { root, lives: 0 };
        fs::create_dir_all(home.path()).unwrap();
        home
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root.join(self.lives.to_string())
    }

    /// The program dies here.
    pub(crate) fn pass_on(&mut self) {
        let before = self.path();
        self.lives += 1;
        fs::create_dir_all(self.path()).unwrap();
        for file in fs::read_dir(before).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), self.path().join(file.file_name())).unwrap();
        }
    }

    /// The machine loses power: of each journal, which nobody synced, the end is gone.
    pub(crate) fn tear_journals(&self, chance: &mut fastrand::Rng) {
        for file in fs::read_dir(self.path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "journal") {
                let bytes = fs::read(&path).unwrap();
                let lost = chance.usize(..=bytes.len().min(2000));
                fs::write(&path, &bytes[..bytes.len() - lost]).unwrap();
            }
        }
    }
}
