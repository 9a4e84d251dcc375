use super::*;

#[tokio::test]
async fn a_kubeconfig_without_a_ca_is_named_where_that_may_be_the_cause() {
    let error = |mut config: Config| {
        // Something that is wrong on every machine, whatever certificates it has.
        config.proxy_url = Some("socks5://127.0.0.1:1".parse().unwrap());
        format!("{:#}", connect(config).err().unwrap())
    };
    let plain = Config::new("http://127.0.0.1:1".parse().unwrap());
    let without = Config::new("https://127.0.0.1:1".parse().unwrap());
    let mut with = without.clone();
    with.root_cert = Some(Vec::new());
    for (config, is_named) in [(plain, false), (without, true), (with, false)] {
        let error = error(config);
        assert!(error.contains("://127.0.0.1:1/ cannot be reached"), "{error}");
        assert_eq!(error.contains("certificate-authority"), is_named, "{error}");
    }
}
