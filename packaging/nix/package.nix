# Not run where this was written, but for its syntax, which a test checks.
{ lib, rustPlatform, coreutils, gnugrep }:

rustPlatform.buildRustPackage {
  pname = "realpeer";
  version = (lib.importTOML ../../Cargo.toml).package.version;
  src = lib.cleanSource ../..;
  cargoLock.lockFile = ../../Cargo.lock;

  # The tests need network namespaces and the servers of a Debian system.
  doCheck = false;

  # The list of files is that of packaging/install; only the paths are different here.
  installPhase = ''
    runHook preInstall
    DESTDIR=$PWD/root sh packaging/install "$(find target -path '*/release/realpeer' -type f | head -1)"
    mkdir -p $out/lib
    cp -r root/usr/bin root/usr/share $out
    cp -r root/usr/lib/systemd $out/lib
    cp -r root/etc $out/etc
    substituteInPlace $out/lib/systemd/system/*.service \
      --replace-quiet /usr/bin/realpeer $out/bin/realpeer \
      --replace-quiet /usr/bin/grep ${gnugrep}/bin/grep \
      --replace-quiet /bin/kill ${coreutils}/bin/kill
    runHook postInstall
  '';

  meta = {
    description = "Pass PROXY-protocol connections on from the client's address";
    license = lib.licenses.mit;
    mainProgram = "realpeer";
    platforms = lib.platforms.linux;
  };
}
