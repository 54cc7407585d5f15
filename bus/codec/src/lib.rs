//! Values ↔ bytes: the only crate that names bincode, so that changing the library changes one file.
//!
//! Configuration is bincode's `standard()`: little-endian varints. Decoding is always limited: without a limit a
//! ten-byte frame that claims a huge string aborts the process. bincode counts a number with its full width, whatever
//! it took, so a value of [`LIMIT`] bytes may count eight times as much.

use serde::{Serialize, de::DeserializeOwned};

/// Most bytes of one encoded value, on the bus and in a store: 4 MiB, far above any record and far below what hurts.
pub const LIMIT: usize = 4 << 20;

/// Most bytes that a value may claim while it is decoded: [`LIMIT`] numbers of one byte each, at their full width.
const CLAIMS: usize = 8 * LIMIT;

/// What is wrong with a value or its bytes.
#[derive(Debug)]
pub struct CodecError(String);

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}

fn configuration() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<CLAIMS>,
> {
    bincode::config::standard().with_limit::<CLAIMS>()
}

/// Encodes `value`. Errors: it has more than [`LIMIT`] bytes, or holds what cannot be encoded.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, configuration())
        .map_err(|e| CodecError(format!("not encodable: {e}")))?;
    if bytes.len() > LIMIT {
        return Err(CodecError(format!(
            "{} bytes are more than the limit of {LIMIT}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// Decodes a whole value. Errors: malformed, too large, or bytes left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError(format!(
            "{} bytes are more than the limit of {LIMIT}",
            bytes.len()
        )));
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|e| CodecError(format!("not decodable: {e}")))?;
    if used != bytes.len() {
        return Err(CodecError(format!(
            "{} bytes left over",
            bytes.len() - used
        )));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_frame_that_claims_a_huge_string_is_an_error() {
        let claim = [253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(super::decode::<String>(&claim).is_err());
    }

    #[test]
    fn whatever_can_be_encoded_can_be_decoded() {
        let most = super::LIMIT - 5;
        let numbers = vec![1u64; most];
        let texts = vec![String::new(); most];
        let text = "x".repeat(most);
        let back = super::encode(&numbers).and_then(|bytes| super::decode::<Vec<u64>>(&bytes));
        assert!(back.unwrap() == numbers);
        let back = super::encode(&texts).and_then(|bytes| super::decode::<Vec<String>>(&bytes));
        assert!(back.unwrap() == texts);
        let back = super::encode(&text).and_then(|bytes| super::decode::<String>(&bytes));
        assert!(back.unwrap() == text);
        assert!(super::encode(&vec![1u64; most + 1]).is_err());
    }

    #[test]
    fn trailing_bytes_are_an_error() {
        let mut bytes = super::encode(&7u32).unwrap();
        bytes.push(0);
        assert!(super::decode::<u32>(&bytes).is_err());
    }
}
