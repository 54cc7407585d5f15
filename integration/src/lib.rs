//! The harness of the story tests and the benches: real processes, real images, real registries.
//!
//! | module | gives |
//! |---|---|
//! | [`node`] | a whole gantry node in a private folder: start, ask, kill, restart, stop and look for leaks |
//! | [`image`] | images built from nothing: every kind of tar entry, every media type, pushed or written out |
//! | [`registry`] | a registry on a loopback port, open or with a password, and ways to damage it |
//! | [`faults`] | lost power, full disks, rotten bits, death at named points; `integration/faults` is the command |
//! | [`relay`] | a line to a registry that is cut while bytes are on their way |
//! | [`containerd`] | Debian's containerd in a private folder, the peer of the benches |
//! | [`chaos`] | a node under load while its parts are killed, and a verdict |
//! | [`http`] | the smallest HTTP client that reaches a unix socket and reads event streams |
//! | [`process`] | child processes that end with their owner, waits with a bound, memory figures |
//!
//! A story is a file in `tests/`, named after the promise it checks. It waits for states with a
//! bound and never for a time; it owns its folders, ports, mounts and processes, and leaves none.
//! The harness knows only the HTTP surface, so it links neither a service nor the supervisor.

pub mod chaos;
pub mod containerd;
pub mod faults;
pub mod http;
pub mod image;
pub mod node;
pub mod process;
pub mod registry;
pub mod relay;

/// Whatever went wrong while a story was set up or told; its text is what the reader sees.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of a story, or of one step of it.
pub type Outcome<T = ()> = Result<T, Error>;
