//! Unpacks a layer into an empty directory and says how fast: `unpack LAYER DIRECTORY`.

use diff::{Compression, Options, Whiteouts, apply};
use std::os::fd::AsFd;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(layer), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: unpack LAYER DIRECTORY".into());
    };
    let (layer, directory) = (std::fs::File::open(layer)?, std::fs::File::open(directory)?);
    let options = Options::new(Whiteouts::Overlay { user_xattr: false });
    let start = std::time::Instant::now();
    let applied = apply(layer, Compression::None, directory.as_fd(), &options)?;
    let seconds = start.elapsed().as_secs_f64();
    let rate = applied.size as f64 / seconds / 1e6;
    println!(
        "{} {} entries, {} bytes: {seconds:.2} s, {rate:.0} MB/s",
        applied.diff_id, applied.entries, applied.size
    );
    Ok(())
}
