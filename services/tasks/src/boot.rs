//! Which start of the machine the records are about: after another one, nothing on the host is what they name.
//!
//! `<root>/boot` has the kernel's random name of that start. Everything here blocks. Source: random(4), `boot_id`.

use contracts::Result;
use std::fs;
use std::path::Path;

const NOW: &str = "/proc/sys/kernel/random/boot_id";

/// Whether the machine was started since [`note`]. Nothing noted says no: nothing was recorded then either.
pub(crate) fn is_another(noted: &Path) -> bool {
    match (fs::read_to_string(noted), fs::read_to_string(NOW)) {
        (Ok(noted), Ok(now)) => noted.trim() != now.trim(),
        _ => false,
    }
}

/// Notes that all records are about this start of the machine.
pub(crate) fn note(place: &Path) -> Result<()> {
    let draft = place.with_extension("new");
    let noted = fs::copy(NOW, &draft).and_then(|_| fs::rename(&draft, place));
    noted.map_err(|e| crate::bundle::about(place, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_start_of_the_machine_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("boot");
        assert!(!is_another(&place));
        note(&place).unwrap();
        assert!(!is_another(&place));
        fs::write(&place, "another\n").unwrap();
        assert!(is_another(&place));
    }
}
