//! Settings of the gateway.

use crate::tls::{self, Acceptor};
use contracts::{Error, Result};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Settings with their defaults.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// TCP addresses to listen on besides the Unix socket, `127.0.0.1:7171`. Each request must then show the token.
    pub(crate) listen: Vec<String>,
    /// File with the token; empty for `token` in the plugin's folder. Made on first start.
    pub(crate) token_file: String,
    /// PEM file with the certificate chain; needed for addresses that are not loopback.
    pub(crate) tls_cert: String,
    /// PEM file with the certificate's key.
    pub(crate) tls_key: String,
    /// PEM file with the certificates of who signs for clients: their certificates are as good as the token. Empty for none.
    pub(crate) tls_client_ca: String,
    /// Seconds after which an idle stream shows that it lives.
    pub(crate) heartbeat_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            token_file: String::new(),
            tls_cert: String::new(),
            tls_key: String::new(),
            tls_client_ca: String::new(),
            // Below the 30 s after which common proxies close a silent connection.
            heartbeat_seconds: 15,
        }
    }
}

impl Config {
    /// The addresses to listen on.
    ///
    /// Errors: `InvalidArgument` for what is no address; `FailedPrecondition` for one that is not loopback without TLS.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>> {
        self.listen.iter().map(|text| self.address(text)).collect()
    }

    fn address(&self, text: &str) -> Result<SocketAddr> {
        let address: SocketAddr = text.parse().map_err(|_| {
            Error::invalid(format!(
                "listen {text:?}: must be address:port, as in 127.0.0.1:7171 or [::1]:7171"
            ))
        })?;
        if !address.ip().is_loopback() && self.tls_cert.is_empty() {
            return Err(Error::precondition(format!(
                "listen {text:?}: would send the token in the clear, set tls_cert and tls_key or use a loopback address"
            )));
        }
        Ok(address)
    }

    /// TLS, when it is set up. Errors: `FailedPrecondition` naming the file.
    pub(crate) fn tls(&self) -> Result<Option<Acceptor>> {
        let path = |file: &'static str, text: &str| match text {
            "" => Err(Error::invalid(format!("{file}: TLS needs it too"))),
            text => Ok(PathBuf::from(text)),
        };
        let settings = [&self.tls_cert, &self.tls_key, &self.tls_client_ca];
        if settings.iter().all(|setting| setting.is_empty()) {
            return Ok(None);
        }
        let (cert, key) = (
            path("tls_cert", &self.tls_cert)?,
            path("tls_key", &self.tls_key)?,
        );
        let ca = Some(Path::new(&self.tls_client_ca)).filter(|ca| !ca.as_os_str().is_empty());
        tls::acceptor(&cert, &key, ca).map(Some)
    }

    /// Where the token is.
    pub(crate) fn token_file(&self, root: &Path) -> PathBuf {
        match self.token_file.as_str() {
            "" => root.join("token"),
            file => file.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(address: &str, cert: &str) -> Result<Vec<SocketAddr>> {
        Config {
            listen: vec![address.into()],
            tls_cert: cert.into(),
            ..Config::default()
        }
        .addresses()
    }

    #[test]
    fn only_loopback_is_served_without_tls() {
        assert!(listening("127.0.0.1:7171", "").is_ok());
        assert!(listening("[::1]:7171", "").is_ok());
        assert!(listening("0.0.0.0:7171", "cert.pem").is_ok());
        for (address, what) in [
            ("0.0.0.0:7171", "tls_cert"),
            ("localhost:1", "address:port"),
        ] {
            let error = listening(address, "").unwrap_err();
            assert!(error.message.contains(what), "{error}");
        }
    }

    #[test]
    fn a_certificate_without_a_key_is_refused() {
        let config = Config {
            tls_cert: "cert.pem".into(),
            ..Config::default()
        };
        assert!(config.tls().err().unwrap().message.contains("tls_key"));
    }
}
