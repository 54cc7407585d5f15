//! Faults that no process can defend itself against, made on purpose: lost power, full disks, rotten bits, sudden ends.
//!
//! `integration/faults` is the command; kills and stops under load are in [`chaos`](crate::chaos).
//!
//! | file | what it knows |
//! |---|---|
//! | `fuse.rs`, [`disk`] | a disk in memory, below a loop device and ext4, that remembers every write and every flush |
//! | [`image`] | what is left of a disk after a cut; nothing else decides about that |
//! | [`catalog`], [`tree`] | small images, and what they look like unpacked, worked out without the product |
//! | [`record`], [`history`] | clients of a node on that disk, and what they were told at which moment |
//! | `soundness.rs` | whether what a node lists is sound, whether it heals, and whether all of it can be removed |
//! | [`power`], `kept.rs` | cuts of recordings, and one cut again and again |
//! | [`full`], [`flips`], [`points`] | disks without room · rot · death between any two steps |
//!
//! ## What a power cut is here
//! A recording is the exact sequence of writes and flushes of one run. A cut at any moment of it keeps everything that
//! was answered before the last answered flush. Of the later writes it keeps all, none, a random half of the 4 KiB
//! blocks, or a random half of the 512-byte sectors: so late writes overtake early ones, and blocks are torn. The file
//! system is ext4, with `data=ordered` or, every second time, `data=writeback`; the journal is replayed by the mount
//! that a check begins with. State that a reboot empties is empty.
//!
//! Not simulated: a device that lies about flushes, or loses what it had; sectors torn within; writes of the file system
//! that a cut earlier in the same recording would have changed; a second cut while a node recovers from the first; other
//! file systems; the kernel's boot id, which stays the same. A flush covers the writes that had *arrived* before it,
//! which is a little more than those that had been answered.
//!
//! ## What a check demands
//! Everything that was answered before the cut is there, as it was answered last; what was under way is there or not.
//! Every listed image is unpacked; every listed blob has the bytes of its digest; every committed snapshot has exactly
//! the files that its layers make: names, kinds, modes, owners, bytes, links. Events have no gap and clients' own events
//! are there once, under their numbers. Everything can be pulled again and is right then, whatever was half there; when
//! all is deleted and collected nothing is left; the node stops clean and the disk can be unmounted.
//!
//! ## What a seed repeats
//! Choices: images, what clients do, where the cuts are, what each loses. Not the pace of the machine, and so not the
//! exact interleaving of a recording; therefore a cut that fails can be kept (`--keep`), and tried again as it was.

pub mod catalog;
pub mod disk;
pub mod flips;
pub mod full;
mod fuse;
pub mod history;
pub mod image;
mod kept;
pub mod points;
pub mod power;
pub mod record;
mod soundness;
pub mod tree;
