# Not run where this was written, but for its syntax, which a test checks. There is no flake.lock yet:
# `nix flake lock` writes it.
{
  description = "Pass PROXY-protocol connections on from the client's address";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = function: nixpkgs.lib.genAttrs systems (system: function nixpkgs.legacyPackages.${system});
    in
    {
      packages = each (pkgs: { default = pkgs.callPackage ./packaging/nix/package.nix { }; });
      nixosModules.default = import ./packaging/nix/module.nix self;
    };
}
