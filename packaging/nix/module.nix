# Not run where this was written, but for its syntax, which a test checks.
#
#     services.realpeer = {
#       enable = true;
#       settings.listener = [{
#         name = "ssh";
#         listen = "0.0.0.0:2222";
#         ipv4 = "127.0.0.1:22";
#         allowed-subnets = [ "192.0.2.5" ];
#       }];
#     };
self:
{ config, lib, pkgs, ... }:

let
  cfg = config.services.realpeer;
  toml = pkgs.formats.toml { };
  file = toml.generate "realpeer.toml" cfg.settings;
in
{
  options.services.realpeer = {
    enable = lib.mkEnableOption "realpeer, a transparent PROXY-protocol proxy";
    package = lib.mkOption {
      type = lib.types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      description = "The package that is run.";
    };
    settings = lib.mkOption {
      type = toml.type;
      default = { };
      description = "The configuration file; `realpeer config show` prints every key.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."realpeer/realpeer.toml".source = file;
    users.users.realpeer = { isSystemUser = true; group = "realpeer"; };
    users.groups.realpeer = { };
    # The unit is the package's own, which reads that file.
    systemd.packages = [ cfg.package ];
    systemd.services.realpeer = {
      wantedBy = [ "multi-user.target" ];
      # A changed file is read again; open connections continue.
      reloadTriggers = [ file ];
    };
  };
}
