//! A device and a server that says what the test says, over wires in memory. The device dies when its tasks are
//! dropped, and comes back on the same folder.

mod bench;
mod cancelling;
mod recovery;
mod refusals;
