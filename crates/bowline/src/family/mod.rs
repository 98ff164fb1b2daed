//! Several processes that serve one pool, so that the death of any of them is noticed by nobody.
//!
//! ```text
//!            accepts, hands over                    serves
//!   clients ---------- keeper ------ channel ------ active
//!                         \                           | rings, arena
//!                          `------- channel ------ passive   sleeps, holds every socket
//! ```
//!
//! - The *keeper* is the process that was started. It binds, accepts, and gives each connection a
//!   number and a copy of its socket to the passive first and then to the active. It starts servers
//!   and holds the family's locks. If it dies, the active starts another.
//! - The *active* is the server. All its state lies in the arena ([`crate::server`]).
//! - The *passive* has everything open that it would need, and waits for the active's threads to
//!   end: it passes the fences, adopts the arena, and goes on where the active was.
//!
//! Invariants:
//! - One process writes to pool and arena at a time. A passive begins only when no thread of the
//!   active runs ([`bowline_arena::Watched`]) and nothing its rings had in flight can land
//!   ([`bowline_arena::DeadRing`]). A new active begins only when every other server of the family
//!   has ended as a process.
//! - Locks of pool and arena are the family's: one open file, of which every process has a copy, so
//!   no stranger gets in between. Nobody unlocks but the keeper, when all others have ended.
//! - A connection has one number in all processes, in ascending order. It reaches the passive
//!   before the active knows of it, so there is no session whose socket the passive has not.
//! - There is one keeper: whoever has the keeper's ends of the channels. A passive is told to watch
//!   the active only when the active has a copy of that end, to give to the next keeper.
//! - A session that ends is shut down before its record goes: copies of the socket in other
//!   processes keep nothing open that a client waits for.
//! - What can be taken over exactly needs the ring: what became of a receive or a send is then told
//!   by the kernel, in memory that outlives the process.

mod channel;
mod heir;
mod keeper;
mod member;
mod message;
mod process;
mod renewal;

pub use keeper::{keep, succeed};
pub use member::serve;
pub(crate) use member::{Handed, Membership};
pub(crate) use message::ToKeeper;
