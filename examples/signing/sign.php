<?php
// Prints a token for a user, as a server in PHP would sign it. It needs no package.

function base64url(string $bytes): string
{
    return rtrim(strtr(base64_encode($bytes), '+/', '-_'), '=');
}

function token_for(string $user): string
{
    $claims = [
        'sub' => $user,
        'exp' => time() + 600,
        'roomcast' => ['subscribe' => ['chat.*', 'user.{sub}'], 'publish' => ['chat.*']],
    ];
    $signed = base64url('{"alg":"HS256","typ":"JWT"}') . '.' . base64url(json_encode($claims));
    $signature = hash_hmac('sha256', $signed, getenv('ROOMCAST_JWT_HS256_SECRET'), true);
    return $signed . '.' . base64url($signature);
}

echo token_for($argv[1]), "\n";
