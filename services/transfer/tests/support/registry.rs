//! A real registry on a loopback port, and one in a few lines that serves an image from memory.

use super::{
    images::Image,
    server::{Answer, Request},
};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Debian's `docker-registry` with a folder of its own. It ends when it is dropped.
pub struct Registry {
    child: Child,
    port: u16,
    pub folder: TempDir,
}

impl Registry {
    pub fn open() -> std::io::Result<Self> {
        Self::start("", "")
    }

    /// Wants user and password for everything.
    pub fn private(user: &str, password: &str) -> std::io::Result<Self> {
        let line = Command::new("htpasswd")
            .args(["-Bbn", user, password])
            .output()?;
        Self::start(
            "auth:\n  htpasswd:\n    realm: story\n    path: FOLDER/htpasswd\n",
            &String::from_utf8_lossy(&line.stdout),
        )
    }

    /// Speaks TLS with a certificate of an authority of its own, `FOLDER/ca.pem`.
    pub fn tls() -> std::io::Result<Self> {
        Self::start(
            "  tls:\n    certificate: FOLDER/cert.pem\n    key: FOLDER/key.pem\n",
            "",
        )
    }

    fn start(more: &str, htpasswd: &str) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().display().to_string();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::write(folder.path().join("htpasswd"), htpasswd)?;
        if more.contains("tls:") {
            certificates(&path)?;
        }
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: FOLDER/data\nhttp:\n  addr: 127.0.0.1:{port}\n{more}"
        );
        let file = folder.path().join("config.yml");
        fs::write(&file, config.replace("FOLDER", &path))?;
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().ok_or(std::io::ErrorKind::BrokenPipe)?);
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                return Err(std::io::Error::other("docker-registry did not start"));
            }
        }
        // The registry must not block on a full pipe.
        std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
        Ok(Self {
            child,
            port,
            folder,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificates(folder: &str) -> std::io::Result<()> {
    let openssl = |arguments: &str| {
        let words = arguments.replace("FOLDER", folder);
        Command::new("openssl")
            .args(words.split(' '))
            .stderr(Stdio::null())
            .status()
    };
    fs::write(
        format!("{folder}/ext"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )?;
    openssl(
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout FOLDER/ca.key -out FOLDER/ca.pem -subj /CN=story",
    )?;
    openssl(
        "req -newkey rsa:2048 -nodes -keyout FOLDER/key.pem -out FOLDER/req.pem -subj /CN=127.0.0.1",
    )?;
    openssl(
        "x509 -req -in FOLDER/req.pem -CA FOLDER/ca.pem -CAkey FOLDER/ca.key -CAcreateserial -days 2 -extfile FOLDER/ext -out FOLDER/cert.pem",
    )?;
    Ok(())
}

/// Answers for one image under repository `app`, tag `1`, as a well-behaved registry does.
pub fn serve(image: &Image, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    let target = path.rsplit('/').next().unwrap_or_default();
    let wanted = if target == "1" {
        image.target.digest.as_str()
    } else {
        target
    };
    match image
        .parts
        .iter()
        .find(|(part, _)| part.digest.as_str() == wanted)
    {
        Some((part, bytes)) if path.contains("/manifests/") => Answer::new(200)
            .header("content-type", part.media_type.clone())
            .header("docker-content-digest", part.digest.as_str())
            .body(bytes.clone()),
        Some((_, bytes)) if path.contains("/blobs/") => Answer::ranged(request, bytes),
        _ => Answer::new(404)
            .body(&br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#[..]),
    }
}
