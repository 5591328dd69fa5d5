//! The allocator gives memory back: that of large messages at once, the rest a while after a storm.
//!
//! What it keeps of freed memory counts as used, and the next large message would be given it whole, before
//! any byte of it came. jemalloc gives back at once what is larger than 8 MiB, unless its background thread
//! runs when the first such memory is asked for. So that is asked for before the thread is started.

use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc gives back at once, in bytes.
const LARGE: usize = 8 * 1024 * 1024;

/// Makes it so. Called before anything large is asked for.
pub(crate) fn start() {
    drop(black_box(Vec::<u8>::with_capacity(LARGE)));
    // Where the thread cannot be started, memory comes back while other memory is asked for.
    let _started = tikv_jemalloc_ctl::background_thread::write(true);
}
