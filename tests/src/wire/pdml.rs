//! What tshark says of a capture, from its PDML: one element a line, each field with its bytes as they stand on the wire.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// One message as tshark dissects it.
#[derive(Debug, Default)]
pub(crate) struct Dissected {
    pub(crate) packet: u64,
    /// Fields of the header: tshark's name, the bytes in hexadecimal.
    header: Vec<(String, String)>,
    /// Fields of the body, at any depth.
    body: Vec<(String, String)>,
    /// tshark gave up somewhere in this packet.
    pub(crate) malformed: bool,
}

impl Dissected {
    /// The values of a header field.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        values(&self.header, name)
    }

    /// Adds a field, for tests.
    #[cfg(test)]
    pub(crate) fn add_header(&mut self, name: &str, value: &str) {
        self.header.push((name.to_owned(), value.to_owned()));
    }

    /// The values of a body field, in the order of tshark's tree.
    pub(crate) fn body(&self, name: &str) -> Vec<&str> {
        values(&self.body, name)
    }
}

fn values<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
}

/// Runs tshark over a capture file: all its SMB2 messages, in order.
pub(crate) fn dissect(path: &Path) -> Result<Vec<Dissected>> {
    let mut child = Command::new("tshark")
        // No settings but tshark's own.
        .env("WIRESHARK_CONFIG_DIR", "/nonexistent")
        .args([
            "-n",
            "-o",
            "tcp.reassemble_out_of_order:TRUE",
            "-Y",
            "smb2",
            "-T",
            "pdml",
            "-J",
            "smb2",
            "-r",
        ])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("running tshark")?;
    let output = child.stdout.take().context("tshark has no output")?;
    let mut reader = Reader::default();
    for line in BufReader::with_capacity(1 << 20, output).lines() {
        reader.line(line?.trim());
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tshark ends with {status} at {}", path.display());
    }
    Ok(reader.messages)
}

/// Where in the document we are.
#[derive(Debug, Default)]
struct Reader {
    packet: u64,
    /// Open elements within the packet.
    depth: usize,
    /// The depth of the `proto` element of a message, while we are in it.
    message: Option<usize>,
    in_header: bool,
    messages: Vec<Dissected>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if line.starts_with("</") {
            self.depth = self.depth.saturating_sub(1);
            self.message = self.message.filter(|at| *at < self.depth);
        } else if line.starts_with("<packet") {
            self.depth = 0;
        } else if line.starts_with("<proto ") || line.starts_with("<field ") {
            self.element(line);
            if !line.ends_with("/>") {
                self.depth += 1;
            }
        }
    }

    fn element(&mut self, line: &str) {
        let name = attribute(line, "name").unwrap_or_default();
        if line.starts_with("<proto ") {
            match name {
                "smb2" => {
                    self.message = Some(self.depth);
                    self.messages.push(Dissected { packet: self.packet, ..Dissected::default() });
                }
                // Of other dissectors' troubles, with what is carried in SMB2, nothing follows.
                "_ws.malformed" if line.contains(": SMB2]") => {
                    let packet = self.packet;
                    self.messages.iter_mut().filter(|m| m.packet == packet).for_each(|m| m.malformed = true);
                }
                _ => {}
            }
            return;
        }
        if name == "num" && self.message.is_none() {
            self.packet = attribute(line, "show").and_then(|n| n.parse().ok()).unwrap_or(self.packet);
        }
        let (Some(at), Some(message)) = (self.message, self.messages.last_mut()) else { return };
        let level = self.depth - at;
        if level == 1 {
            self.in_header = attribute(line, "show").is_some_and(|text| text.ends_with("Header"));
        }
        // What tshark concludes from other packets has no bytes.
        let Some(value) = attribute(line, "value").filter(|value| !value.is_empty()) else { return };
        let field = (name.to_owned(), value.to_owned());
        match (self.in_header, level) {
            (true, 2) => message.header.push(field),
            // Deeper in the header stand conclusions too, under the bytes of what they were drawn from.
            (true, _) => {}
            (false, _) => message.body.push(field),
        }
    }
}

/// The value of an attribute, as it is written.
fn attribute<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = line;
    loop {
        let (before, after) = rest.split_once("=\"")?;
        let (value, next) = after.split_once('"')?;
        if before.ends_with(name) && before[..before.len() - name.len()].ends_with(' ') {
            return Some(value);
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"
<packet>
  <proto name="geninfo" pos="0" showname="General information" size="66">
    <field name="num" pos="0" show="7" showname="Number" value="7" size="66"/>
  </proto>
  <proto name="smb2" showname="SMB2" size="312" pos="70">
    <field name="" show="SMB2 Header" size="64" pos="70" value="fe53">
      <field name="smb2.cmd" showname="Command: a &quot;b&quot;" size="2" pos="82" show="5" value="0500"/>
      <field name="smb2.tid" showname="Tree Id" size="4" pos="106" show="1" value="8441506e">
        <field name="smb2.tree" showname="Tree" size="4" pos="106" show="x" value="8441506e"/>
        <field name="smb2.tcon_frame" showname="Connected" size="0" pos="106" show="22"/>
      </field>
    </field>
    <field name="" show="Close Request (0x06)" size="24" pos="134" value="1800">
      <field name="smb2.fid" showname="File Id" size="16" pos="1" show="g" value="aa"/>
    </field>
  </proto>
  <proto name="smb2" showname="SMB2" size="9" pos="70">
    <field name="" show="SMB2 Header" size="64" pos="70" value="fe53">
      <field name="smb2.cmd" showname="Command" size="2" pos="82" show="6" value="0600"/>
    </field>
  </proto>
  <proto name="_ws.malformed" showname="[Malformed Packet: SMB2]" size="0" pos="0">
  </proto>
</packet>
"#;

    #[test]
    fn header_and_body_are_told_apart() {
        let mut reader = Reader::default();
        DOCUMENT.lines().for_each(|line| reader.line(line.trim()));
        let [first, second] = &reader.messages[..] else { panic!("two messages") };
        assert_eq!(
            (first.packet, first.header("smb2.cmd"), first.body("smb2.fid")),
            (7, vec!["0500"], vec!["aa"])
        );
        assert!(first.header("smb2.tree").is_empty() && first.body("smb2.tree").is_empty());
        assert_eq!((second.header("smb2.cmd"), second.malformed), (vec!["0600"], true));
    }
}
