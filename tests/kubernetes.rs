//! The manifests of examples/kubernetes.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use serde::Deserialize;
use serde_json::{Value, json};
use support::header::v2;
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6};
use support::streams::{assert_carries, send};
use support::{Backend, Confined, TempDir, addr, repository};

const VARIANTS: [&str; 2] = ["sidecar", "nodeport"];

fn folder() -> PathBuf {
    repository("examples/kubernetes")
}

/// A kustomization, as far as the ones here need it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    api_version: String,
    kind: String,
    namespace: String,
    resources: Vec<String>,
    #[serde(default)]
    config_map_generator: Vec<Generator>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generator {
    name: String,
    files: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Image {
    name: String,
    new_name: String,
}

fn kustomization(directory: &Path) -> Kustomization {
    let path = directory.join("kustomization.yaml");
    let text = read(&path);
    serde_norway::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The objects of a variant, as `kubectl apply -k` sends them.
fn built(variant: &str) -> Vec<Value> {
    build(&folder().join(variant))
}

fn build(directory: &Path) -> Vec<Value> {
    let Kustomization {
        api_version,
        kind,
        namespace,
        resources,
        config_map_generator,
        images,
    } = kustomization(directory);
    assert_eq!(
        (&*api_version, &*kind),
        ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    );
    let mut all = Vec::new();
    for path in resources.iter().map(|name| directory.join(name)) {
        match path.is_dir() {
            true => all.extend(build(&path)),
            false => all.extend(objects(&read(&path))),
        }
    }
    all.extend(config_map_generator.iter().map(|map| {
        let data: BTreeMap<_, _> =
            map.files.iter().map(|name| (name, read(&directory.join(name)))).collect();
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map.name}, "data": data})
    }));
    for object in all
        .iter_mut()
        .filter(|object| object["kind"] != "Namespace")
    {
        object["metadata"]["namespace"] = namespace.clone().into();
    }
    for Image { name, new_name } in images {
        let mut used = false;
        for list in ["initContainers", "containers"] {
            let list = format!("/spec/template/spec/{list}");
            let lists = all
                .iter_mut()
                .filter_map(|object| object.pointer_mut(&list)?.as_array_mut());
            for container in lists
                .flatten()
                .filter(|container| container["image"] == name)
            {
                container["image"] = new_name.clone().into();
                used = true;
            }
        }
        assert!(used, "no container has the image {name}");
    }
    all
}

fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(yaml);
    let parse = |document| Value::deserialize(document).expect("YAML");
    documents.map(parse).collect()
}

/// What the API would not take of an object, or would ignore.
fn refused(object: &Value) -> Option<String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let version = object["apiVersion"].as_str().unwrap_or_default();
    match (version, kind) {
        ("v1", "Namespace") => unfit::<Namespace>(object),
        ("v1", "ConfigMap") => unfit::<ConfigMap>(object),
        ("v1", "Service") => unfit::<Service>(object),
        ("apps/v1", "Deployment") => unfit::<Deployment>(object),
        ("apps/v1", "DaemonSet") => unfit::<DaemonSet>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => unfit::<NetworkPolicy>(object),
        _ => Some(format!("nothing is known of {version} {kind}")),
    }
}

fn unfit<T: Serialize + DeserializeOwned>(object: &Value) -> Option<String> {
    let typed: T = match serde_json::from_value(object.clone()) {
        Ok(typed) => typed,
        Err(error) => return Some(error.to_string()),
    };
    // The types leave out what they do not know.
    lost(
        object,
        &serde_json::to_value(typed).expect("it is JSON"),
        "",
    )
}

/// The first part of `given` that is not in `kept`.
fn lost(given: &Value, kept: &Value, at: &str) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(key, value)| {
            let at = format!("{at}.{key}");
            match kept.get(key) {
                Some(kept) => lost(value, kept, &at),
                None => Some(format!("{at} is unknown")),
            }
        }),
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            let mut pairs = given.iter().zip(kept).enumerate();
            pairs.find_map(|(i, (given, kept))| lost(given, kept, &format!("{at}[{i}]")))
        }
        _ => (given != kept).then(|| format!("{at}: {given} becomes {kept}")),
    }
}

#[test]
fn the_api_takes_every_object() {
    for variant in VARIANTS {
        let objects = built(variant);
        for object in &objects {
            let name = &object["metadata"]["name"];
            assert_eq!(refused(object), None, "{variant}: {name}");
            let global = object["kind"] == "Namespace";
            assert!(global || object["metadata"]["namespace"] == "ssh", "{name}");
        }
        let kinds: Vec<_> = objects.iter().map(|o| o["kind"].as_str()).collect();
        for kind in ["Namespace", "ConfigMap", "Service", "NetworkPolicy"] {
            assert!(kinds.contains(&Some(kind)), "{variant}: {kinds:?}");
        }
    }
}

/// The check finds a mistyped key, a value of the wrong type and a missing key.
#[test]
fn mistakes_are_found() {
    let yaml = read(&folder().join("sidecar/deployment.yaml"));
    assert_eq!(refused(&objects(&yaml)[0]), None);
    for (right, wrong) in [
        ("readinessProbe", "readynessProbe"),
        ("runAsNonRoot: true", "runAsNonRoot: 65532"),
        ("  selector:\n", "  selectors:\n"),
        ("containerPort: 2222", "containerPort: ssh"),
        ("apps/v1", "apps/v2"),
    ] {
        assert!(yaml.contains(right), "{right}");
        let object = &objects(&yaml.replace(right, wrong))[0];
        assert!(refused(object).is_some(), "{wrong}");
    }
}

/// Each file is named by a kustomization.
#[test]
fn every_file_is_used() {
    for part in ["base", "sidecar", "nodeport"] {
        let directory = folder().join(part);
        let Kustomization {
            resources,
            config_map_generator,
            ..
        } = kustomization(&directory);
        let generated = config_map_generator.into_iter().flat_map(|map| map.files);
        let mut known: Vec<String> = resources.into_iter().chain(generated).collect();
        known.push("kustomization.yaml".to_owned());
        for entry in fs::read_dir(&directory).expect("a folder") {
            let name = entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8");
            assert!(known.contains(&name), "{part}/{name}");
        }
    }
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.unwrap_or_else(|| panic!("there is no {kind}"))
}

fn pod(objects: &[Value]) -> &Value {
    let found = objects.iter().find(|o| !o["spec"]["template"].is_null());
    &found.expect("there are pods")["spec"]["template"]
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list
        .as_array()
        .and_then(|list| list.iter().find(|entry| entry["name"] == name));
    found.unwrap_or_else(|| panic!("{name} is missing: {list}"))
}

/// What one object says of another is true: labels, ports, load balancers and mounts.
#[test]
fn the_objects_fit_each_other() {
    for variant in VARIANTS {
        let objects = built(variant);
        let (pod, service) = (pod(&objects), of_kind(&objects, "Service"));
        let policy = of_kind(&objects, "NetworkPolicy");
        let labels = &pod["metadata"]["labels"];
        for selector in [
            &service["spec"]["selector"],
            &policy["spec"]["podSelector"]["matchLabels"],
        ] {
            for (key, value) in selector.as_object().expect("labels") {
                assert_eq!(&labels[key], value, "{variant}");
            }
        }
        let container = named(&pod["spec"]["containers"], "realpeer");
        for port in [
            &service["spec"]["ports"][0]["targetPort"],
            &policy["spec"]["ingress"][0]["ports"][0]["port"],
            &policy["spec"]["ingress"][1]["ports"][0]["port"],
            &container["readinessProbe"]["httpGet"]["port"],
            &container["livenessProbe"]["httpGet"]["port"],
        ] {
            named(&container["ports"], port.as_str().expect("a name"));
        }
        let map = of_kind(&objects, "ConfigMap");
        let volume = named(&pod["spec"]["volumes"], "config");
        assert_eq!(volume["configMap"]["name"], map["metadata"]["name"]);
        let file: toml::Table = config(map).parse().expect("TOML");
        let cidr = &policy["spec"]["ingress"][0]["from"][0]["ipBlock"]["cidr"];
        let allowed = file["listener"][0]["allowed-subnets"][0].as_str();
        assert_eq!(
            cidr.as_str().and_then(|cidr| cidr.strip_suffix("/32")),
            allowed
        );
    }
}

fn config(map: &Value) -> &str {
    map["data"]["realpeer.toml"].as_str().expect("text")
}

/// The containers of a pod, each with the arguments, the user and the capabilities that it has in its
/// manifest, in the network namespace of an application.
#[test]
fn the_pods_serve_with_no_more_than_they_ask_for() {
    for variant in VARIANTS {
        let objects = built(variant);
        let pod = &pod(&objects)["spec"];
        let (balancer, node) = support::stage::wire();
        let directory = TempDir::new();
        directory.file("realpeer.toml", config(of_kind(&objects, "ConfigMap")));
        let confined = Confined::new(&node, directory);
        let application = ["127.0.0.1:22", "[::1]:22"].map(|at| Backend::listen(&node, at));
        for container in pod["initContainers"].as_array().into_iter().flatten() {
            let mut ended = run(&confined, container);
            assert_eq!(ended.exit_code(), 0, "{:?}", ended.stderr());
        }
        let container = named(&pod["containers"], "realpeer");
        let proxy = run(&confined, container);
        proxy.wait_for_line("\"listening\"");
        for (application, client, visited) in [
            (&application[0], CLIENT, VISITED),
            (&application[1], CLIENT6, VISITED6),
        ] {
            let near = balancer.dial("192.0.2.10:2222");
            send(&near, v2(client, visited).bytes());
            let (far, seen) = application.accept();
            assert_eq!(seen, addr(client), "{variant}");
            assert_carries(&near, &far);
        }
        for probe in ["readinessProbe", "livenessProbe"] {
            let get = &container[probe]["httpGet"];
            let port = named(&container["ports"], get["port"].as_str().expect("a name"));
            let path = get["path"].as_str().expect("a path");
            let url = format!("http://192.0.2.10:{}{path}", port["containerPort"]);
            node.run(&["curl", "-sS", "--fail-with-body", &url]);
        }
        let warned = |line: &String| line.contains("WARN");
        let lines = proxy.stdout();
        assert!(!lines.iter().any(warned), "{variant}: {lines:?}");
    }
}

fn run(confined: &Confined, container: &Value) -> support::Running {
    let words = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|word| word.as_str().expect("text").to_owned())
            .collect()
    };
    let security = &container["securityContext"];
    assert_eq!(words(&security["capabilities"]["drop"]), ["ALL"]);
    assert_eq!(security["runAsUser"], 65532);
    confined.run(
        &words(&security["capabilities"]["add"]),
        &words(&container["args"]),
    )
}
