//! An acknowledged event is on disk: shown by killing what can be killed, and by counting syncs.

mod kill;
pub mod load;
pub mod postgres;
mod sync;
