#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now shoal.socket shoal.service shoal-scheduler.service
fi
