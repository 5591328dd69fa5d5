//! Files that nobody but their owner may read: keys, journals, who a client is.

use std::fs::OpenOptions;

/// What is made with these options can be read by its owner only.
pub fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}
