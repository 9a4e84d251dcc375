//! The smbpasswd format, as `pdbedit -L -w` prints it: `user:uid:LMHASH:NTHASH:[flags]:LCT-xxxxxxxx:`.

use std::collections::HashMap;

use super::keys::NtHash;

/// The users of one smbpasswd file.
#[derive(Debug, Default)]
pub struct Smbpasswd {
    users: HashMap<String, NtHash>,
}

/// A line that is not in the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct LineError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it. Never holds any of the line's text.
    pub what: &'static str,
}

impl Smbpasswd {
    /// Reads a whole file. Disabled accounts and those without a password are skipped; machine accounts (`name$`) are users
    /// like others.
    ///
    /// # Errors
    /// Every line that is not in the format.
    pub fn parse(text: &str) -> Result<Self, Vec<LineError>> {
        let mut users = HashMap::new();
        let mut errors = Vec::new();
        for (at, line) in text.lines().enumerate() {
            match parse_line(line) {
                Ok(Some((user, hash))) => {
                    users.insert(user, hash);
                }
                Ok(None) => {}
                Err(what) => errors.push(LineError { line: at + 1, what }),
            }
        }
        if errors.is_empty() { Ok(Self { users }) } else { Err(errors) }
    }

    /// The user's hash. Names are compared without case, as SMB servers do.
    pub fn lookup(&self, user: &str) -> Option<NtHash> {
        self.users.get(&user.to_lowercase()).cloned()
    }

    /// How many users can be acted for.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

fn parse_line(line: &str) -> Result<Option<(String, NtHash)>, &'static str> {
    let line = line.trim_end();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let mut fields = line.split(':');
    let user = fields.next().filter(|user| !user.is_empty()).ok_or("the user name is missing")?;
    let uid = fields.next().ok_or("the uid is missing")?;
    if uid.parse::<u32>().is_err() {
        return Err("the uid is not a number");
    }
    let _lm = fields.next().ok_or("the LM hash is missing")?;
    let nt = fields.next().ok_or("the NT hash is missing")?;
    let flags = fields.next().unwrap_or("[U          ]");
    if !flags.starts_with('[') || !flags.ends_with(']') {
        return Err("the account flags are not in brackets: print the file with `pdbedit -L -w`");
    }
    if flags.contains('D') || nt.starts_with("NO PASSWORD") || nt.bytes().all(|b| b == b'X') {
        return Ok(None);
    }
    Ok(Some((user.to_lowercase(), NtHash::new(hash(nt).ok_or("the NT hash is not 32 hexadecimal digits")?))))
}

fn hash(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    let mut out = [0; 16];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pdbedit_prints() {
        let text = "Alice:1000:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX:0123456789ABCDEF0123456789abcdef:[U          ]:LCT-65F0A2B1:\n\
                    off:1001:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX:0123456789ABCDEF0123456789ABCDEF:[DU         ]:LCT-65F0A2B1:\n\
                    pc$:1003:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX:0123456789ABCDEF0123456789ABCDEF:[W          ]:LCT-65F0A2B1:\n\
                    # a comment\n\n\
                    none:1002:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX:NO PASSWORDXXXXXXXXXXXXXXXXXXXXX:[NU         ]:LCT-0:\n";
        let file = Smbpasswd::parse(text).unwrap();
        assert_eq!(file.len(), 2);
        assert_eq!(file.lookup("aLICE").unwrap().bytes()[..2], [0x01, 0x23]);
        assert!(file.lookup("PC$").is_some());
        assert!(file.lookup("off").is_none() && file.lookup("none").is_none());
    }

    #[test]
    fn every_bad_line_is_named_and_none_is_quoted() {
        let errors = Smbpasswd::parse("a:1:X:zz:[U ]:\nb\nc:x:X:X:[U]\n").unwrap_err();
        assert_eq!(errors.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(!format!("{errors:?}").contains("zz"));
    }
}
