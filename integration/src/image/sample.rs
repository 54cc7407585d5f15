//! Images that are ready to use.

use std::fs;
use std::process::Command;

use super::{Compression, Entry, Image, Layer, Packed};
use crate::{Outcome, process};

const BUSYBOX: &str = "/bin/busybox";

/// The layer of [`busybox`]: the static binary, a link for each applet, users and the usual folders.
///
/// Errors: the machine has no static busybox (package `busybox-static`).
pub fn busybox_layer() -> Outcome<Layer> {
    let binary =
        fs::read(BUSYBOX).map_err(|error| format!("{BUSYBOX}: {error}; install busybox-static"))?;
    let folders = [
        "bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var",
    ];
    let applets = String::from_utf8(process::run(Command::new(BUSYBOX).arg("--list"))?)?;
    let applets = applets.lines().filter(|name| *name != "busybox");
    Ok(Layer::new()
        .with_all(folders.map(Entry::dir))
        .with(&Entry::dir("tmp").mode(0o1777))
        .with(&Entry::file("bin/busybox", binary).mode(0o755))
        .with_all(applets.map(|name| Entry::symlink(&format!("bin/{name}"), "busybox")))
        .with(&Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nplain:x:1000:1000:plain:/home:/bin/sh\n",
        ))
        .with(&Entry::file(
            "etc/group",
            "root:x:0:\nplain:x:1000:\nextra:x:2000:plain\n",
        )))
}

/// A small image with a shell and all applets. Users: `root`, and `plain` (1000, also in group `extra` 2000).
///
/// Errors: the machine has no static busybox (package `busybox-static`).
pub fn busybox() -> Outcome<Image> {
    Ok(Image::new()
        .layer(busybox_layer()?.pack(Compression::Gzip)?)
        .set("Env", vec!["PATH=/bin"])
        .set("Cmd", vec!["sh"]))
}

/// An image of `count` layers above busybox, which together hold `total` bytes in files as real images have them:
/// most are small, most bytes are in a few large ones, and gzip brings them to about a third.
///
/// Errors: the machine has no static busybox (package `busybox-static`).
pub fn layers(count: usize, total: usize) -> Outcome<Packed> {
    let mut image = busybox()?;
    for number in 0..count {
        let layer = filled(number, total / count.max(1));
        image = image.layer(layer.pack(Compression::Gzip)?);
    }
    Ok(image.pack())
}

/// Half of the bytes in one large file, half in folders of sixteen files of 16 KiB.
fn filled(number: usize, bytes: usize) -> Layer {
    const SMALL: usize = 16 * 1024;
    let top = format!("layer{number}");
    let mut random = Random(number as u64 + 1);
    let large = Entry::file(&format!("{top}/large"), random.content(bytes / 2));
    let mut layer = Layer::new().with(&Entry::dir(&top)).with(&large);
    for file in 0..bytes / 2 / SMALL {
        let folder = format!("{top}/{:04}", file / 16);
        if file % 16 == 0 {
            layer = layer.with(&Entry::dir(&folder));
        }
        layer = layer.with(&Entry::file(
            &format!("{folder}/{file}"),
            random.content(SMALL),
        ));
    }
    layer
}

/// A xorshift generator: the same seed gives the same bytes, everywhere and for ever.
///
/// Source: Marsaglia, "Xorshift RNGs", 2003, triple (13, 7, 17).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns bytes of which a compressor removes about two thirds: runs of noise, each followed by text.
    pub fn content(&mut self, length: usize) -> Vec<u8> {
        let mut content = Vec::with_capacity(length + 96);
        while content.len() < length {
            (0..4).for_each(|_| content.extend_from_slice(&self.number().to_le_bytes()));
            content.extend_from_slice(
                b"a line of text that every file of this image has in it, again!\n",
            );
        }
        content.truncate(length);
        content
    }
}
