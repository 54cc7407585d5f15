//! A machine made up of values.

use crate::host::{Device, Facts, Host};
use std::io;

pub(super) struct FakeHost {
    pub(super) facts: Facts,
    pub(super) devices: Vec<Device>,
    pub(super) files: Vec<String>,
}

impl Default for FakeHost {
    fn default() -> Self {
        let device = |path: &str, block, major, minor| Device {
            path: path.to_owned(),
            block,
            major,
            minor,
            mode: 0o660,
            uid: 0,
            gid: 6,
        };
        Self {
            facts: Facts {
                capabilities: (1 << 41) - 1,
                cgroup2: true,
                machine: "x86_64".to_owned(),
                open_files: 4096,
                lowest_oom_score_adj: -1000,
            },
            devices: vec![
                device("/dev/fuse", false, 10, 229),
                device("/dev/sda", true, 8, 0),
            ],
            files: Vec::new(),
        }
    }
}

impl Host for FakeHost {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn device(&self, path: &str) -> io::Result<Device> {
        let known = self.devices.iter().find(|device| device.path == path);
        known.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn devices(&self) -> io::Result<Vec<Device>> {
        Ok(self.devices.clone())
    }
    fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| file == path)
    }
}
