//! `dls psql`: opens whichever database is configured.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::catalog::embedded::Embedded;
use crate::config::{Config, DatabaseUrl};

/// Becomes `psql`, connected to the configured database; returns only on failure.
///
/// # Errors
/// When there is no embedded database yet, or no `psql` on this machine.
pub fn psql(config: &Config, command: Option<&str>, more: &[String]) -> anyhow::Result<()> {
    let (url, program) = match &config.database.url {
        DatabaseUrl::Embedded => {
            let (url, bin) = Embedded::locate(&config.state_dir)?;
            (url, bin.join("psql"))
        }
        DatabaseUrl::Server(url) => (url.clone(), PathBuf::from("psql")),
    };
    let mut psql = Command::new(&program);
    let (url, password) = without_password(&url);
    if let Some(password) = password {
        psql.env("PGPASSWORD", password);
    }
    psql.arg("--dbname").arg(to_the_primary(url));
    if let Some(sql) = command {
        psql.args(["--no-psqlrc", "--command", sql]);
    }
    psql.args(more);
    Err(psql.exec()).with_context(|| {
        format!(
            "running {}: install it with `apt-get install postgresql-client`",
            program.display()
        )
    })
}

/// Where several hosts are named, psql is to open the one that takes writes: left to itself it opens
/// the first that takes it, a standby too, or waits for it for ever.
fn to_the_primary(mut url: String) -> String {
    let several = url.split('/').nth(2).is_some_and(|h| h.contains(','));
    for (name, value) in [
        ("target_session_attrs", "read-write"),
        ("connect_timeout", "5"),
    ] {
        if several && !url.contains(name) {
            let mark = if url.contains('?') { '&' } else { '?' };
            url = format!("{url}{mark}{name}={value}");
        }
    }
    url
}

/// Takes the password out of a URL, so that other users do not see it in the list of
/// processes; it travels in the environment instead.
fn without_password(url: &str) -> (String, Option<String>) {
    let split = || {
        let (scheme, rest) = url.split_once("://")?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (user_info, host) = rest.get(..end)?.rsplit_once('@')?;
        let (user, password) = user_info.split_once(':')?;
        Some((
            format!("{scheme}://{user}@{host}{}", rest.get(end..)?),
            percent_decode(password)?,
        ))
    };
    match split() {
        Some((url, password)) => (url, Some(password)),
        None => (url.to_owned(), None),
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{to_the_primary, without_password};

    #[test]
    fn of_several_hosts_the_primary_is_opened() {
        let made = |url: &str| to_the_primary(url.to_owned());
        assert_eq!(
            made("postgres://dls@one,two/dls?connect_timeout=9"),
            "postgres://dls@one,two/dls?connect_timeout=9&target_session_attrs=read-write"
        );
        for one in ["postgres://dls@one/dls?host=a,b", "postgres:///dls", "dls"] {
            assert_eq!(made(one), one);
        }
    }

    #[test]
    fn a_password_leaves_the_url() {
        let (url, password) =
            without_password("postgres://dls:s%40cret@db:5432/dls?sslmode=require");
        assert_eq!(url, "postgres://dls@db:5432/dls?sslmode=require");
        assert_eq!(password.as_deref(), Some("s@cret"));
        for plain in [
            "postgres://dls@db/dls",
            "postgres:///dls?host=/run/x",
            "embedded",
        ] {
            assert_eq!(without_password(plain), (plain.to_owned(), None));
        }
    }
}
