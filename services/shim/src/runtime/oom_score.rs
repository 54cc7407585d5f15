//! Sets `oom_score_adj` as far as the kernel lets us.
//!
//! Lowering it below what the process was born with needs CAP_SYS_RESOURCE, which a confined host may
//! not have. A container that is a little more likely to be killed is better than none.

use std::fs;
use std::io::ErrorKind;

use serde_json::Value;

use crate::error::{About, Error, Result};

const FILE: &str = "/proc/self/oom_score_adj";

/// Takes `oomScoreAdj` out of an OCI process and applies it to this helper, whose children inherit it.
pub(super) fn take_over(process: &mut Value) -> Result<()> {
    let Some(process) = process.as_object_mut() else {
        return Ok(());
    };
    let Some(wanted) = process
        .remove("oomScoreAdj")
        .and_then(|value| value.as_i64())
    else {
        return Ok(());
    };
    set(wanted).map(drop)
}

/// Sets the score of this process; false when the kernel does not allow one so low.
pub(super) fn set(wanted: i64) -> Result<bool> {
    if !(-1000..=1000).contains(&wanted) {
        return Err(Error::invalid(format!(
            "oomScoreAdj {wanted} is not within -1000 and 1000"
        )));
    }
    match fs::write(FILE, wanted.to_string()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).about(FILE),
    }
}
