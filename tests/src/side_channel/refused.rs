//! What a binding needs: tried with one thing wrong at a time.

use anyhow::Result;

use super::{Stage, Trial};
use crate::client::{Setup, User, guid};
use understudy_core::crypto::{Dialect, sealing::Cipher};

pub(super) const TRIALS: &[Trial] = &[
    ("both say MULTI_CHANNEL", |stage| with(stage, true, &Setup { multi_channel: true, ..stage.setup() })),
    ("only the side channel says MULTI_CHANNEL", |stage| {
        with(stage, false, &Setup { multi_channel: true, ..stage.setup() })
    }),
    ("another ClientGuid", |stage| another(stage, |setup| setup.client_guid = guid(), stage.user)),
    ("another dialect", |stage| {
        let other = if stage.setup.dialect == Dialect::SMB302 { Dialect::SMB311 } else { Dialect::SMB302 };
        another(stage, |setup| setup.dialect = other, stage.user)
    }),
    ("another signing algorithm", |stage| {
        let other: &'static [u16] = if stage.setup.signing_algs == [1] { &[2] } else { &[1] };
        another(stage, |setup| setup.signing_algs = other, stage.user)
    }),
    ("3.1.1, a client that offers no signing algorithm", |stage| {
        let stage = Stage { setup: Setup { signing_algs: &[], ..stage.setup }, ..*stage };
        another(&stage, |setup| setup.signing_algs = &[1], stage.user)
    }),
    ("another cipher", |stage| {
        let other =
            if stage.setup.cipher == Some(Cipher::Aes256Gcm) { Cipher::Aes128Gcm } else { Cipher::Aes256Gcm };
        another(stage, |setup| setup.cipher = setup.cipher.map(|_| other), stage.user)
    }),
    ("server multi channel support = no", |stage| {
        let stage = Stage { node: stage.single, ..*stage };
        another(&stage, |_| {}, stage.user)
    }),
    ("another user", |stage| another(stage, |_| {}, stage.other)),
    ("a client that does not sign", |stage| {
        another(stage, |_| {}, stage.user).and_then(|_| {
            let stage = Stage { setup: Setup { signing: false, ..stage.setup }, ..*stage };
            another(&stage, |_| {}, stage.user)
        })
    }),
];

/// Binds with the same ClientGuid, whatever else each says.
fn with(stage: &Stage<'_>, main_too: bool, setup: &Setup) -> Result<String> {
    let mut main = stage.connect(&Setup { multi_channel: main_too, ..*setup })?;
    let at = main.enter(stage.user, "share")?;
    let mut side = stage.connect(setup)?;
    side.bind(&main, at.session, stage.user)?;
    side.echo(at)?;
    main.echo(at)?;
    Ok("yes".into())
}

fn another(stage: &Stage<'_>, change: impl FnOnce(&mut Setup), user: User<'_>) -> Result<String> {
    let setup = stage.setup();
    let mut main = stage.connect(&setup)?;
    let at = main.enter(stage.user, "share")?;
    let mut other = setup;
    change(&mut other);
    let bound = stage.connect(&other).and_then(|mut side| {
        side.bind(&main, at.session, user)?;
        side.echo(at)
    });
    main.echo(at)?;
    Ok(match bound {
        Ok(()) => "bound".into(),
        Err(error) => format!("no, client undisturbed: {error:#}"),
    })
}
